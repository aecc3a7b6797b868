package model

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

func TestL7ProtocolOf(t *testing.T) {
	text := func(s string) *string { return &s }
	for _, test := range []struct {
		port corev1.ServicePort
		want L7Protocol
	}{
		{corev1.ServicePort{Name: "http"}, L7HTTP},
		{corev1.ServicePort{Name: "HTTP2-x"}, L7HTTP2},
		{corev1.ServicePort{Name: "grpc-web"}, L7GRPC},
		{corev1.ServicePort{Name: "httpx"}, L7Undeclared},
		{corev1.ServicePort{Name: "http", AppProtocol: text("TCP")}, L7TCP},
		{corev1.ServicePort{Name: "http", AppProtocol: text("example.com/own")}, L7HTTP},
		{corev1.ServicePort{Name: "x", AppProtocol: text("kubernetes.io/h2c")}, L7HTTP2},
		{corev1.ServicePort{Name: "x", AppProtocol: text("kubernetes.io/wss")}, L7TLS},
		{corev1.ServicePort{Name: "redis"}, L7TCP},
		{corev1.ServicePort{Port: 3306}, L7TCP},
		{corev1.ServicePort{Name: "http", Port: 3306}, L7HTTP},
		{corev1.ServicePort{Port: 9080}, L7Undeclared},
		{corev1.ServicePort{Name: "http", Protocol: corev1.ProtocolUDP}, L7UDP},
	} {
		if got := L7ProtocolOf(test.port); got != test.want {
			t.Errorf("L7ProtocolOf(%q %v %d %s) = %q, want %q", test.port.Name, test.port.AppProtocol, test.port.Port, test.port.Protocol, got, test.want)
		}
	}
}

func TestHosts(t *testing.T) {
	for _, test := range []struct{ host, want string }{
		{"reviews", "reviews.a.svc.cluster.local"},
		{"Reviews", "reviews.a.svc.cluster.local"},
		{"reviews.b", "reviews.b"},
		{"*.b.svc.cluster.local", "*.b.svc.cluster.local"},
		{"", ""},
	} {
		if got := ResolveHost(test.host, "a", "cluster.local"); got != test.want {
			t.Errorf("ResolveHost(%q) = %q, want %q", test.host, got, test.want)
		}
	}
	for _, test := range []struct {
		pattern string
		want    bool
	}{
		{"web.a.svc.cluster.local", true},
		{"*.a.svc.cluster.local", true},
		{"*", true},
		{"*.web.a.svc.cluster.local", false},
		{"*web.a.svc.cluster.local", false},
		{"web", false},
	} {
		if got := HostMatches(test.pattern, "web.a.svc.cluster.local"); got != test.want {
			t.Errorf("HostMatches(%q) = %v, want %v", test.pattern, got, test.want)
		}
	}
}

func TestParentService(t *testing.T) {
	core, kind, own := gatewayv1.Group(""), gatewayv1.Kind("Service"), gatewayv1.Group(gatewayv1.GroupName)
	other := gatewayv1.Namespace("b")
	for _, test := range []struct {
		name string
		ref  gatewayv1.ParentReference
		want string
	}{
		{"service", gatewayv1.ParentReference{Group: &core, Kind: &kind, Name: "web"}, "a/web"},
		{"service of another namespace", gatewayv1.ParentReference{Group: &core, Kind: &kind, Name: "web", Namespace: &other}, "b/web"},
		{"gateway by default", gatewayv1.ParentReference{Name: "web"}, ""},
		{"group by default", gatewayv1.ParentReference{Kind: &kind, Name: "web"}, ""},
		{"other group", gatewayv1.ParentReference{Group: &own, Kind: &kind, Name: "web"}, ""},
	} {
		got, ok := ParentService(test.ref, "a")
		if ok != (test.want != "") || ok && got.String() != test.want {
			t.Errorf("%s: ParentService = %q, %v; want %q", test.name, got, ok, test.want)
		}
	}
}

func TestFieldsHonoured(t *testing.T) {
	if got := FieldsHonoured(nil, 1); got != nil {
		t.Errorf("without notices there are the conditions %v, want none", got)
	}
	key := manifest.Key{Kind: "K", Name: "n"}
	notices := []Notice{
		{key, "spec.b", "second"},
		{key, "spec.a", "first"},
		{key, "spec.b", "second"},
	}
	got := FieldsHonoured(notices, 4)
	if want := "spec.a: first; spec.b: second"; len(got) != 1 || got[0].Message != want || got[0].ObservedGeneration != 4 {
		t.Errorf("conditions %v, want one with the message %q", got, want)
	}
	long := []Notice{{key, "spec", strings.Repeat("ü", 40000)}}
	if got := len(FieldsHonoured(long, 1)[0].Message); got > maxConditionMessage {
		t.Errorf("message of %d bytes, want at most %d", got, maxConditionMessage)
	}
}
