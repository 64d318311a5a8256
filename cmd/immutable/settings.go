package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"gopkg.in/yaml.v3"
)

// settings is the file that --config or IMMUTABLE_CONFIG names: a YAML mapping from flags to values. One file may serve
// all subcommands. It implements kong.Resolver.
type settings struct {
	path   string
	values map[string]string
}

// loadSettings reads the file if there is one. It comes before flags are parsed, since parsing asks for its content.
func loadSettings(args []string) (*settings, error) {
	s := &settings{path: os.Getenv("IMMUTABLE_CONFIG")}
	for i, arg := range args {
		if arg == "--" {
			break
		}
		if path, ok := strings.CutPrefix(arg, "--config="); ok {
			s.path = path
		} else if arg == "--config" && i+1 < len(args) {
			s.path = args[i+1]
		}
	}
	if s.path == "" {
		return s, nil
	}
	text, err := os.ReadFile(s.path) //nolint:gosec // the file that the operator named
	if err != nil {
		return nil, fmt.Errorf("reading settings: %w", err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(text, &values); err != nil {
		return nil, fmt.Errorf("reading settings in %s: %w", s.path, err)
	}
	s.values = make(map[string]string, len(values))
	for name, v := range values {
		switch v := v.(type) {
		case []any:
			list := make([]string, len(v))
			for i, element := range v {
				list[i] = fmt.Sprint(element)
			}
			s.values[name] = strings.Join(list, ",")
		case map[string]any, nil:
			return nil, fmt.Errorf("reading settings in %s: %s: must be a value or a list of values", s.path, name)
		default:
			s.values[name] = fmt.Sprint(v)
		}
	}
	return s, nil
}

// Validate implements kong.Resolver: a setting that no flag has is an error, as a flag that does not exist is.
func (s *settings) Validate(app *kong.Application) error {
	var known []string
	var collect func(*kong.Node)
	collect = func(n *kong.Node) {
		for _, f := range n.Flags {
			if f.Name != "help" && f.Name != "config" {
				known = append(known, f.Name)
			}
		}
		for _, child := range n.Children {
			collect(child)
		}
	}
	collect(app.Node)
	var unknown []string
	for name := range s.values {
		if !slices.Contains(known, name) {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return fmt.Errorf("unknown settings in %s: %s", s.path, strings.Join(unknown, ", "))
	}
	return nil
}

// Resolve implements kong.Resolver. kong lets a resolver overrule the environment, so this one steps back for it.
func (s *settings) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	value, ok := s.values[flag.Name]
	if !ok {
		return nil, nil //nolint:nilnil // kong: not set here
	}
	for _, name := range flag.Envs {
		if _, ok := os.LookupEnv(name); ok {
			return nil, nil //nolint:nilnil // kong: not set here
		}
	}
	return value, nil
}
