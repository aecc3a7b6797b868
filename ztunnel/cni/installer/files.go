package installer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// keptSuffix is on the name of a file as it was before ours took its place. The runtime
// does not read files whose names end so.
const keptSuffix = ".ambit-cni-kept"

// partPattern is for the names of files that are being written.
const partPattern = "." + PluginName + ".*.part"

// confFile is a network configuration file.
type confFile struct {
	path    string
	mode    os.FileMode
	isList  bool
	chained bool // our entry is in it
	raw     []byte
	list    networkList
}

// files lists what the runtime considers, in its order.
func (i *Installer) files() ([]string, error) {
	entries, err := os.ReadDir(i.cfg.ConfDir) // by name
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if slices.Contains([]string{".conf", ".conflist", ".json"}, filepath.Ext(e.Name())) {
			paths = append(paths, filepath.Join(i.cfg.ConfDir, e.Name()))
		}
	}
	return paths, nil
}

// first is the file that the runtime uses.
func (i *Installer) first() (confFile, error) {
	paths, err := i.files()
	if err != nil {
		return confFile{}, err
	}
	var errs []error
	for _, path := range paths {
		f, err := read(path)
		if err == nil {
			return f, nil
		}
		errs = append(errs, err)
	}
	return confFile{}, errors.Join(append(errs, fmt.Errorf("no network configuration in %s yet", i.cfg.ConfDir))...)
}

func read(path string) (confFile, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return confFile{}, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return confFile{}, err
	}
	f := confFile{path: path, raw: data, mode: stat.Mode().Perm(), isList: filepath.Ext(strings.TrimSuffix(path, keptSuffix)) == ".conflist"}
	parse := parseSingle
	if f.isList {
		parse = parseList
	}
	if f.list, err = parse(data); err != nil {
		return confFile{}, fmt.Errorf("%s: %w", path, err)
	}
	f.chained = slices.ContainsFunc(f.list.plugins, isOurs)
	return f, nil
}

// listName is the name for the list in the place of a single plugin's file: free, or
// taken by such a list, and before all later files.
func listName(path string) (string, error) {
	stem := strings.TrimSuffix(path, filepath.Ext(path))
	for _, name := range []string{stem + ".conflist", stem + "-ambit.conflist"} {
		f, err := read(name)
		if errors.Is(err, os.ErrNotExist) || err == nil && f.list.unchain() {
			return name, nil
		}
	}
	return "", fmt.Errorf("%s: no name for a list in its place, %s.conflist is another's", path, stem)
}

// restore puts files back as they were, where nothing but our entry has come to them.
func (i *Installer) restore() error {
	kept, err := filepath.Glob(filepath.Join(i.cfg.ConfDir, "*"+keptSuffix))
	errs := []error{err}
	for _, path := range kept {
		original, restoreFile := strings.TrimSuffix(path, keptSuffix), restoreSingle
		if filepath.Ext(original) == ".conflist" {
			restoreFile = restoreList
		}
		if err := restoreFile(path, original); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// restoreList is for a list that has been chained in its place.
func restoreList(kept, original string) error {
	was, err := read(kept)
	if err != nil {
		return os.Remove(kept) // nothing that could be restored
	}
	now, err := read(original)
	if err != nil || !now.list.unchain() || !now.list.same(was.list) {
		return os.Remove(kept) // its owner has written it anew, or taken it away
	}
	return os.Rename(kept, original)
}

// restoreSingle is for a single plugin with a list in its place.
func restoreSingle(kept, original string) error {
	data, err := os.ReadFile(kept)
	if err != nil {
		return err
	}
	stem := strings.TrimSuffix(original, filepath.Ext(original))
	for _, name := range []string{stem + ".conflist", stem + "-ambit.conflist"} {
		f, err := read(name)
		if err != nil || !f.list.unchain() {
			continue
		}
		if len(f.list.plugins) != 1 || !sameJSON(f.list.plugins[0], data) {
			return os.Remove(kept) // the list has a life of its own
		}
		if _, err := os.Stat(original); errors.Is(err, os.ErrNotExist) {
			err = os.Rename(kept, original)
			return errors.Join(err, os.Remove(name))
		}
		return errors.Join(os.Remove(kept), os.Remove(name)) // written anew by its owner
	}
	return os.Remove(kept) // whoever owns the network has taken the list away
}

// unchanged says whether the file is as it was read. Between this and a rename there
// is no time for a person, and little for a program.
func (f confFile) unchanged() error {
	now, err := os.ReadFile(f.path)
	if err == nil && !bytes.Equal(now, f.raw) {
		err = fmt.Errorf("%s: changed while it was read", f.path)
	}
	return err
}

// replace writes a file under another name first. It is on the disk before it has its
// name: a node whose network configuration is empty after a crash starts no pod.
func replace(path string, data []byte, mode os.FileMode) error {
	return replaceFrom(path, bytes.NewReader(data), mode)
}

func replaceFrom(path string, data io.Reader, mode os.FileMode) error {
	part, err := os.CreateTemp(filepath.Dir(path), partPattern)
	if err != nil {
		return err
	}
	_, err = io.Copy(part, data)
	err = errors.Join(err, part.Chmod(mode), part.Sync(), part.Close())
	if err == nil {
		err = os.Rename(part.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part.Name()))
	}
	return nil
}

// sweep removes what was left half written.
func (i *Installer) sweep() error {
	var errs []error
	for _, dir := range []string{i.cfg.BinDir, i.cfg.ConfDir} {
		parts, err := filepath.Glob(filepath.Join(dir, partPattern))
		errs = append(errs, err)
		for _, part := range parts {
			errs = append(errs, os.Remove(part))
		}
	}
	return errors.Join(errs...)
}

// installProgram copies the program unless it is there.
func (i *Installer) installProgram() error {
	source := i.cfg.Program
	if source == "" {
		source = "/proc/self/exe"
	}
	target := filepath.Join(i.cfg.BinDir, PluginName)
	same, err := sameFile(source, target)
	if err != nil || same {
		return err
	}
	f, err := os.Open(source)
	if err != nil {
		return err
	}
	defer f.Close()
	return replaceFrom(target, f, 0o755)
}

// sameFile compares contents. A target that is not there or not executable differs.
func sameFile(source, target string) (bool, error) {
	a, err := os.Open(source)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := os.Open(target)
	if err != nil {
		return false, nil //nolint:nilerr // to be written
	}
	defer b.Close()
	sa, err := a.Stat()
	if err != nil {
		return false, err
	}
	sb, err := b.Stat()
	if err != nil || sa.Size() != sb.Size() || sb.Mode().Perm() != 0o755 {
		return false, err
	}
	bufa, bufb := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, erra := io.ReadFull(a, bufa)
		m, errb := io.ReadFull(b, bufb)
		if !bytes.Equal(bufa[:n], bufb[:m]) {
			return false, nil
		}
		if erra != nil || errb != nil {
			return ended(erra) && ended(errb), nil
		}
	}
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
