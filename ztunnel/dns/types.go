package dns

import "strings"

// typeNames are the types that are counted apart, by their names in the registry
// (https://www.iana.org/assignments/dns-parameters); the rest reads "unknown".
var typeNames = map[uint16]string{
	1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 10: "NULL", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV",
	35: "NAPTR", 37: "CERT", 41: "OPT", 43: "DS", 44: "SSHFP", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3",
	51: "NSEC3PARAM", 52: "TLSA", 59: "CDS", 60: "CDNSKEY", 61: "OPENPGPKEY", 62: "CSYNC", 64: "SVCB", 65: "HTTPS",
	251: "IXFR", 252: "AXFR", 255: "ANY", 257: "CAA",
}

var typeLabels = func() map[uint16]string {
	lower := map[uint16]string{}
	for t, name := range typeNames {
		lower[t] = strings.ToLower(name)
	}
	return lower
}()

// typeName is what is logged, typeLabel what is counted; "" is unknown.
func typeName(q *question) string {
	if !q.understood {
		return ""
	}
	return typeNames[q.kind]
}

func typeLabel(q *question) string {
	if !q.understood {
		return ""
	}
	return typeLabels[q.kind]
}
