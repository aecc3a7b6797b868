package source

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	yamlutil "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// What CEL rules may cost, as in an API server: one rule, and all of an object.
const (
	ruleCost   = 1_000_000
	objectCost = 10_000_000
)

// schemas validates objects of custom kinds as an API server would: structure
// with unknown fields, defaults, values, list types, CEL rules. A schema is
// compiled when the first object needs it. Not safe for concurrent use.
type schemas struct {
	documents map[groupKind][]byte // definitions as text: to parse all of them takes a second
	compiled  map[schemaKey]*compiledSchema
}

type schemaKey struct {
	groupKind
	version string
}

type compiledSchema struct {
	structural *structuralschema.Structural
	values     validation.SchemaValidator
	rules      *cel.Validator
}

// fieldError is what is wrong at one place of an object.
type fieldError struct{ field, reason string }

func (e *fieldError) Error() string {
	if e.field == "" {
		return e.reason
	}
	return e.field + ": " + e.reason
}

// newSchemas reads streams of CustomResourceDefinitions.
func newSchemas(streams ...[]byte) (*schemas, error) {
	s := &schemas{
		documents: map[groupKind][]byte{},
		compiled:  map[schemaKey]*compiledSchema{},
	}
	for _, stream := range streams {
		reader := yamlutil.NewYAMLReader(bufio.NewReader(bytes.NewReader(stream)))
		for {
			document, err := reader.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("custom resource definitions: %w", err)
			}
			if err := s.add(document); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// definedKind finds what a definition defines by the shape that generators give
// it: spec.group and spec.names.kind, each on a line of its own.
var definedKind = regexp.MustCompile(`(?ms)^  group: (\S+)$.*?^    kind: (\S+)$`)

func (s *schemas) add(document []byte) error {
	if len(bytes.TrimSpace(document)) == 0 {
		return nil
	}
	found := definedKind.FindSubmatch(document)
	if found == nil {
		return errors.New("custom resource definition: no group and kind found")
	}
	s.documents[groupKind{string(found[1]), string(found[2])}] = document
	return nil
}

// parse returns the schema of one version; nil when there is none.
func (s *schemas) parse(key schemaKey) (*apiextensionsv1.JSONSchemaProps, error) {
	document, ok := s.documents[key.groupKind]
	if !ok {
		return nil, nil
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(document, &crd); err != nil {
		return nil, fmt.Errorf("definition of %s: %w", key.kind, err)
	}
	for _, version := range crd.Spec.Versions {
		if version.Name == key.version && version.Served && version.Schema != nil {
			return version.Schema.OpenAPIV3Schema, nil
		}
	}
	return nil, nil
}

func (s *schemas) compile(key schemaKey) (*compiledSchema, error) {
	if done, ok := s.compiled[key]; ok {
		return done, nil
	}
	raw, err := s.parse(key)
	if err != nil || raw == nil {
		return nil, err
	}
	var props apiextensions.JSONSchemaProps
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(raw, &props, nil); err != nil {
		return nil, fmt.Errorf("schema of %s: %w", key.kind, err)
	}
	structural, err := structuralschema.NewStructural(&props)
	if err != nil {
		return nil, fmt.Errorf("schema of %s: %w", key.kind, err)
	}
	values, _, err := validation.NewSchemaValidator(&props)
	if err != nil {
		return nil, fmt.Errorf("schema of %s: %w", key.kind, err)
	}
	done := &compiledSchema{
		structural: structural,
		values:     values,
		rules:      cel.NewValidator(structural, true, ruleCost),
	}
	s.compiled[key] = done
	return done, nil
}

// check sets the defaults in body, which it changes, and returns what is wrong
// with it: an unknown field is. A kind without a schema is not checked.
func (s *schemas) check(ctx context.Context, kind groupKind, version string, body map[string]any) error {
	unknown, err := s.admit(ctx, kind, version, body)
	if len(unknown) > 0 {
		return &fieldError{field: strings.Join(unknown, ", "), reason: "unknown field"}
	}
	return err
}

// admit does as check does, but takes unknown fields out of body and returns
// their paths.
func (s *schemas) admit(ctx context.Context, kind groupKind, version string, body map[string]any) (unknown []string, err error) {
	schema, err := s.compile(schemaKey{kind, version})
	if err != nil || schema == nil {
		return nil, err
	}
	unknown = pruning.PruneWithOptions(body, schema.structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	defaulting.PruneNonNullableNullsWithoutDefaults(body, schema.structural)
	defaulting.Default(body, schema.structural)
	problems := validation.ValidateCustomResource(nil, body, schema.values)
	problems = append(problems, listtype.ValidateListSetsAndMaps(nil, schema.structural, body)...)
	if len(problems) == 0 && schema.rules != nil {
		problems, _ = schema.rules.Validate(ctx, nil, schema.structural, body, nil, objectCost)
	}
	return unknown, firstProblem(problems)
}

// firstProblem names one field, and what is wrong with the others after it.
func firstProblem(problems field.ErrorList) error {
	if len(problems) == 0 {
		return nil
	}
	out := &fieldError{field: problems[0].Field, reason: problems[0].ErrorBody()}
	for _, problem := range problems[1:] {
		out.reason += "; " + problem.Error()
	}
	return out
}
