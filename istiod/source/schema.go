package source

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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
	raw      map[schemaKey]*apiextensionsv1.JSONSchemaProps
	compiled map[schemaKey]*compiledSchema
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
		raw:      map[schemaKey]*apiextensionsv1.JSONSchemaProps{},
		compiled: map[schemaKey]*compiledSchema{},
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

func (s *schemas) add(document []byte) error {
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(document, &crd); err != nil {
		return fmt.Errorf("custom resource definition: %w", err)
	}
	for _, version := range crd.Spec.Versions {
		if version.Served && version.Schema != nil {
			key := schemaKey{groupKind{crd.Spec.Group, crd.Spec.Names.Kind}, version.Name}
			s.raw[key] = version.Schema.OpenAPIV3Schema
		}
	}
	return nil
}

func (s *schemas) compile(key schemaKey) (*compiledSchema, error) {
	if done, ok := s.compiled[key]; ok {
		return done, nil
	}
	raw, ok := s.raw[key]
	if !ok {
		return nil, nil
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
	delete(s.raw, key)
	return done, nil
}

// check sets the defaults in body, which it changes, and returns what is wrong
// with it. A kind without a schema is not checked.
func (s *schemas) check(ctx context.Context, kind groupKind, version string, body map[string]any) error {
	schema, err := s.compile(schemaKey{kind, version})
	if err != nil || schema == nil {
		return err
	}
	unknown := pruning.PruneWithOptions(body, schema.structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})
	if len(unknown) > 0 {
		return &fieldError{field: strings.Join(unknown, ", "), reason: "unknown field"}
	}
	defaulting.PruneNonNullableNullsWithoutDefaults(body, schema.structural)
	defaulting.Default(body, schema.structural)
	problems := validation.ValidateCustomResource(nil, body, schema.values)
	problems = append(problems, listtype.ValidateListSetsAndMaps(nil, schema.structural, body)...)
	if len(problems) == 0 && schema.rules != nil {
		problems, _ = schema.rules.Validate(ctx, nil, schema.structural, body, nil, objectCost)
	}
	return firstProblem(problems)
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
