package config

import (
	"fmt"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// only refuses a message in which a field other than the named ones is set:
// what we do not honour must not look as if it were in force. at is the path of
// the message in its resource.
func only(m proto.Message, at string, names ...string) error {
	var err error
	reflected := m.ProtoReflect()
	reflected.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if !slices.Contains(names, string(f.Name())) {
			err = fmt.Errorf("%s is not supported", join(at, string(f.Name())))
		}
		return err == nil
	})
	if err == nil && len(reflected.GetUnknown()) > 0 {
		err = fmt.Errorf("%s has a field that is not known", join(at, string(reflected.Descriptor().Name())))
	}
	return err
}

func join(at, field string) string {
	if at == "" {
		return field
	}
	return at + "." + field
}

// open reads a typed configuration of the type of m.
func open(a *anypb.Any, at string, m proto.Message) error {
	if a == nil {
		return fmt.Errorf("%s is missing", at)
	}
	if !a.MessageIs(m) {
		return fmt.Errorf("%s: %s is not supported", at, a.GetTypeUrl())
	}
	if err := a.UnmarshalTo(m); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	return nil
}

// ads refuses a configuration source other than the stream that it came on.
func ads(c *corev3.ConfigSource, at string) error {
	if err := only(c, at, "ads", "resource_api_version"); err != nil {
		return err
	}
	if c.GetAds() == nil {
		return fmt.Errorf("%s.ads is missing", at)
	}
	return nil
}
