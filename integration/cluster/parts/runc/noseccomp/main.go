// Command noseccomp stands in for a runc that has been built without seccomp,
// as on a machine without libseccomp's headers: such a runc refuses every
// container that has a seccomp profile, and nearly every one has. It takes the
// profile out of the container's configuration and becomes the runc beside it.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "noseccomp:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if bundle := bundleOf(args); bundle != "" {
		if err := dropProfile(filepath.Join(bundle, "config.json")); err != nil {
			return err
		}
	}
	runc := filepath.Join(filepath.Dir(self), "runc")
	return fmt.Errorf("%s: %w", runc, syscall.Exec(runc, append([]string{runc}, args[1:]...), os.Environ()))
}

// bundleOf finds the bundle's directory among runc's arguments; only commands
// that make a container have one.
func bundleOf(args []string) string {
	for i, arg := range args {
		if value, ok := strings.CutPrefix(arg, "--bundle="); ok {
			return value
		}
		if (arg == "--bundle" || arg == "-b") && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// dropProfile rewrites the configuration without its seccomp profile.
func dropProfile(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	changed, err := withoutProfile(content)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	next := path + ".next"
	if err := os.WriteFile(next, changed, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

func withoutProfile(content []byte) ([]byte, error) {
	var spec, linux map[string]json.RawMessage
	if err := json.Unmarshal(content, &spec); err != nil {
		return nil, err
	}
	if spec["linux"] == nil {
		return content, nil
	}
	if err := json.Unmarshal(spec["linux"], &linux); err != nil {
		return nil, err
	}
	delete(linux, "seccomp")
	var err error
	if spec["linux"], err = json.Marshal(linux); err != nil {
		return nil, err
	}
	return json.Marshal(spec)
}
