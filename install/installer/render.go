package installer

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	release "helm.sh/helm/v4/pkg/release/v1"

	"github.com/ambit-mesh/ambit/install/charts"
)

// umbrella is the chart whose values are those of this package.
const umbrella = "ambient"

// load returns an embedded chart. The umbrella comes with its dependencies,
// which in the folder are links.
func load(name string) (*chart.Chart, error) {
	files, err := read(name, "")
	if err != nil {
		return nil, fmt.Errorf("chart %s: %w", name, err)
	}
	if name == umbrella {
		for _, p := range parts {
			more, err := read(p.chart, "charts/"+p.chart+"/")
			if err != nil {
				return nil, fmt.Errorf("chart %s: %w", p.chart, err)
			}
			files = append(files, more...)
		}
	}
	c, err := loader.LoadFiles(files)
	if err != nil {
		return nil, fmt.Errorf("chart %s: %w", name, err)
	}
	return c, nil
}

func read(chart, prefix string) ([]*archive.BufferedFile, error) {
	var files []*archive.BufferedFile
	err := fs.WalkDir(charts.FS, chart, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := charts.FS.ReadFile(name)
		if err != nil {
			return err
		}
		files = append(files, &archive.BufferedFile{Name: prefix + strings.TrimPrefix(name, chart+"/"), Data: data})
		return nil
	})
	return files, err
}

// sections splits the umbrella's values into those of each chart, and refuses
// what no chart knows.
func sections(values map[string]any) (map[string]map[string]any, error) {
	schema, err := charts.FS.ReadFile(path.Join(umbrella, "values.schema.json"))
	if err != nil {
		return nil, err
	}
	if err := util.ValidateAgainstSingleSchema(values, schema); err != nil {
		return nil, fmt.Errorf("values: %w", err)
	}
	out := map[string]map[string]any{}
	for _, p := range parts {
		own := map[string]any{}
		if given, ok := values[p.chart].(map[string]any); ok {
			maps.Copy(own, given)
		}
		global := map[string]any{}
		for _, from := range []any{values["global"], own["global"]} { // the chart's own counts
			if given, ok := from.(map[string]any); ok {
				global = loader.MergeMaps(global, given)
			}
		}
		if len(global) > 0 {
			own["global"] = global
		}
		out[p.chart] = own
	}
	return out, nil
}

// render returns a release as helm template would make it, without a cluster.
func render(ctx context.Context, c *chart.Chart, name, namespace string, values map[string]any) (*release.Release, error) {
	install := action.NewInstall(action.NewConfiguration())
	install.ReleaseName, install.Namespace = name, namespace
	install.DryRunStrategy = action.DryRunClient
	// The oldest that the charts accept; none of them makes a difference.
	install.KubeVersion = &common.KubeVersion{Version: "v1.30.0", Major: "1", Minor: "30"}
	made, err := install.RunWithContext(ctx, c, values)
	if err != nil {
		return nil, fmt.Errorf("chart %s: %w", c.Name(), err)
	}
	rel, ok := made.(*release.Release)
	if !ok {
		return nil, fmt.Errorf("chart %s: helm returned a %T", c.Name(), made)
	}
	return rel, nil
}

// Render returns the manifests of the given charts, or of all, in the order in
// which they are installed.
func Render(ctx context.Context, namespace string, values map[string]any, only ...string) ([]byte, error) {
	for _, name := range only {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.chart == name }) {
			return nil, fmt.Errorf("there is no chart %q, only base, istiod, cni and ztunnel", name)
		}
	}
	sections, err := sections(values)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, p := range parts {
		if len(only) > 0 && !slices.Contains(only, p.chart) {
			continue
		}
		c, err := load(p.chart)
		if err != nil {
			return nil, err
		}
		rel, err := render(ctx, c, p.release, namespace, sections[p.chart])
		if err != nil {
			return nil, err
		}
		out.WriteString(strings.TrimLeft(rel.Manifest, "\n"))
	}
	return out.Bytes(), nil
}

// Values returns all values with their meaning and defaults, as one file that
// can be given to an install.
func Values() (string, error) {
	var out strings.Builder
	out.WriteString("# Values of ambitctl install and of chart ambient. What the sections have under\n" +
		"# global can be set for all charts at once, under global at the top.\n")
	for _, p := range parts {
		text, err := charts.FS.ReadFile(path.Join(p.chart, "values.yaml"))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "\n%s:\n", p.chart)
		for line := range strings.Lines(string(text)) {
			if strings.TrimSpace(line) != "" {
				out.WriteString("  ")
			}
			out.WriteString(line)
		}
	}
	return out.String(), nil
}

// Version is that of the embedded charts.
func Version() (string, error) {
	c, err := load(umbrella)
	if err != nil {
		return "", err
	}
	return c.Metadata.Version, nil
}
