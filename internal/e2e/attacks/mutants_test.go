package attacks

import (
	"cmp"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What a check of the verifier is, is read off its source: a condition that leads to a finding, or to an error. All of them go into one build (go build
// -overlay), in which a variable of the environment says which of them is without effect; the shipped program knows nothing of it.

// check is one condition of the verifier.
type check struct {
	// number stands for it in the environment.
	number int
	file   string // from the module's root
	// name is unique: file, function and condition.
	name string
	line int
}

// Variables of the environment of a build with all mutants.
const (
	// disabledVariable is the number of the check that has no effect.
	disabledVariable = "IMMUTABLE_DISABLED_CHECK"
	// reachedVariable names a file for the numbers of the checks that would have had an effect, a line each.
	reachedVariable = "IMMUTABLE_REACHED_CHECKS"
)

// switchSource goes into each package that has checks.
const switchSource = `package %s

import (
	"fmt"
	"os"
	"strconv"
	"sync"
)

var (
	disabledCheckNumber, _ = strconv.Atoi(os.Getenv("` + disabledVariable + `"))
	reachedChecksFile      = os.Getenv("` + reachedVariable + `")
	reachedChecks          sync.Map
)

// disabledCheck is asked where a check is about to have an effect.
func disabledCheck(number int) bool {
	if reachedChecksFile != "" {
		if _, was := reachedChecks.LoadOrStore(number, true); !was {
			f, err := os.OpenFile(reachedChecksFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				panic(err)
			}
			if _, err := fmt.Fprintln(f, number); err != nil {
				panic(err)
			}
			if err := f.Close(); err != nil {
				panic(err)
			}
		}
	}
	return number == disabledCheckNumber
}
`

// checkedFiles are the files of the verifier: all of ledger/ and verify/ but what makes a ledger.
func checkedFiles(t *testing.T, root string) (files []string) {
	t.Helper()
	not := []string{
		"ledger/chainpart.go", "ledger/range.go", // parts of chains, for those who make a ledger
		"verify/config.go", // settings
	}
	for _, dir := range []string{"ledger", "verify"} {
		all, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range all {
			name := dir + "/" + filepath.Base(path)
			if !strings.HasSuffix(name, "_test.go") && !slices.Contains(not, name) {
				files = append(files, name)
			}
		}
	}
	return files
}

// edit puts text into a source at an offset.
type edit struct {
	at   int
	text string
}

// checkFinder finds the checks of one file.
type checkFinder struct {
	fset      *token.FileSet
	file      string
	source    []byte
	reporters map[string]bool // functions that take a finding
	results   []*ast.FieldList
	functions []string
	names     map[string]int
	checks    []*check
	edits     []edit
	first     int // number of the first check, less one
}

// findChecks finds all checks, and the sources in which each can be disabled, by file.
func findChecks(t *testing.T, root string) (checks []*check, sources map[string][]byte) {
	t.Helper()
	fset := token.NewFileSet()
	files := checkedFiles(t, root)
	parsed := map[string]*ast.File{}
	sources = map[string][]byte{}
	for _, name := range files {
		source, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if parsed[name], err = parser.ParseFile(fset, name, source, parser.SkipObjectResolution); err != nil {
			t.Fatal(err)
		}
		sources[name] = source
	}
	reporters := findReporters(parsed)
	for _, name := range files {
		f := &checkFinder{fset: fset, file: name, source: sources[name], reporters: reporters, names: map[string]int{}, first: len(checks)}
		ast.Walk(f, parsed[name])
		checks = append(checks, f.checks...)
		sources[name] = f.apply()
	}
	for _, dir := range []string{"ledger", "verify"} {
		sources[dir+"/disabledcheck.go"] = fmt.Appendf(nil, switchSource, dir)
	}
	return checks, sources
}

// findReporters returns the functions that take a finding, and those that do nothing but call one of them.
func findReporters(files map[string]*ast.File) map[string]bool {
	reporters := map[string]bool{
		"fault": true, "faultf": true, "undecided": true, "leafFault": true, "tell": true, "at": true, "fork": true, "gap": true, "rootDiffers": true,
	}
	for grown := true; grown; {
		grown = false
		for _, file := range files {
			for _, d := range file.Decls {
				f, ok := d.(*ast.FuncDecl)
				if !ok || f.Body == nil || reporters[f.Name.Name] || len(f.Body.List) != 1 {
					continue
				}
				if call, ok := f.Body.List[0].(*ast.ExprStmt); ok && isCallOf(call.X, reporters) {
					reporters[f.Name.Name], grown = true, true
				}
			}
		}
	}
	return reporters
}

func isCallOf(e ast.Expr, functions map[string]bool) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return functions[f.Name]
	case *ast.SelectorExpr:
		return functions[f.Sel.Name]
	}
	return false
}

// Visit implements ast.Visitor.
func (f *checkFinder) Visit(n ast.Node) ast.Visitor {
	switch n := n.(type) {
	case *ast.FuncDecl:
		return f.in(n.Name.Name, n.Type.Results, n.Body)
	case *ast.FuncLit:
		return f.in(f.functions[len(f.functions)-1], n.Type.Results, n.Body)
	case *ast.IfStmt:
		if f.finds(n.Body.List) {
			f.disable(n.Cond)
		} else if f.accepting() {
			f.weaken(n.Cond)
		}
	case *ast.SwitchStmt:
		for _, s := range n.Body.List {
			c := s.(*ast.CaseClause)
			switch {
			case n.Tag == nil && f.finds(c.Body):
				for _, cond := range c.List {
					f.disable(cond)
				}
			case c.List == nil && f.finds(c.Body):
				f.skip(c.Body)
			}
		}
	case *ast.ReturnStmt:
		if len(n.Results) == 1 && f.returns("bool") {
			f.weaken(n.Results[0])
		}
	case *ast.AssignStmt:
		if len(n.Rhs) == 1 {
			f.weaken(n.Rhs[0])
		}
	case *ast.RangeStmt:
		f.skip(n.Body.List)
	}
	return f
}

// in walks a function's body.
func (f *checkFinder) in(name string, results *ast.FieldList, body *ast.BlockStmt) ast.Visitor {
	if body == nil || f.makes(name) {
		return nil
	}
	f.functions, f.results = append(f.functions, name), append(f.results, results)
	if !f.reporters[name] {
		f.skip(body.List)
	}
	for _, s := range body.List {
		ast.Walk(f, s)
	}
	f.functions, f.results = f.functions[:len(f.functions)-1], f.results[:len(f.results)-1]
	return nil
}

// makes says whether a function makes proofs and notes: its errors are no findings.
func (f *checkFinder) makes(name string) bool {
	return slices.Contains([]string{
		"PlanInclusion", "PlanConsistency", "Build", "fold", "SignCheckpoint", "EncodeDisclosure",
		"Validate",                                               // settings
		"ParseAddCheckpoint", "OpenLog", "Cosign", "Cosignature", // what a log and its witnesses say to each other
	}, name) || f.file != "ledger/rootlog.go" && name == "Encode"
}

// returns says whether the function's last result has a type.
func (f *checkFinder) returns(names ...string) bool {
	results := f.results[len(f.results)-1]
	if results == nil {
		return false
	}
	return slices.Contains(names, types.ExprString(results.List[len(results.List)-1].Type))
}

// accepting functions have conditions without which too much would be accepted.
func (f *checkFinder) accepting() bool {
	return len(f.functions) > 0 && slices.Contains([]string{
		"Open", "extend", "inRange", "met", "content", "redactions", "remember", "remembered", "checkRoot", "count",
	}, f.functions[len(f.functions)-1])
}

// finds says whether statements, not those within other statements, take a finding, return an error or decide the exit code.
func (f *checkFinder) finds(body []ast.Stmt) bool {
	for _, s := range body {
		switch s := s.(type) {
		case *ast.ExprStmt:
			if isCallOf(s.X, f.reporters) {
				return true
			}
		case *ast.AssignStmt:
			target := types.ExprString(s.Lhs[len(s.Lhs)-1])
			if target == "r.Exit" || target == "err" && s.Tok == token.ASSIGN || target == "verdict" || strings.HasSuffix(target, ".err") {
				return true
			}
			if len(s.Rhs) == 1 && isCallOf(s.Rhs[0], map[string]bool{"appendFault": true}) {
				return true
			}
			if call, ok := s.Rhs[0].(*ast.CallExpr); ok && slices.ContainsFunc(call.Args, func(e ast.Expr) bool { return isCallOf(e, f.reporters) }) {
				return true
			}
		case *ast.ReturnStmt:
			if f.isError(s) {
				return true
			}
		}
	}
	return false
}

// isError says whether a return statement returns an error that was made here; in ledger/, which asks nobody, any error.
func (f *checkFinder) isError(s *ast.ReturnStmt) bool {
	if len(s.Results) == 0 {
		return false
	}
	last := s.Results[len(s.Results)-1]
	switch {
	case types.ExprString(last) == "nil":
		return false
	case f.returns("*Fault", "*ledger.Fault"):
		return true
	case f.returns("string"):
		return strings.HasSuffix(f.functions[len(f.functions)-1], "Mismatch") && types.ExprString(last) != `""`
	case !f.returns("error"):
		return false
	case strings.HasPrefix(f.file, "ledger/"):
		return true
	}
	made, passed := false, false
	ast.Inspect(last, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok {
			passed = passed || id.Name == "err"
			made = made || len(id.Name) > 3 && strings.EqualFold(id.Name[:3], "err") && id.Name != "Errorf" && id.Name != "errors" && id.Name != "Error"
		}
		return true
	})
	return made || !passed
}

// disable makes mutants of a condition, one of each alternative, that do not let it come true.
func (f *checkFinder) disable(cond ast.Expr) {
	for _, e := range operands(cond, token.LOR) {
		n := f.add(e)
		f.put(e.Pos(), "((")
		f.put(e.End(), fmt.Sprintf(") && !disabledCheck(%d))", n))
	}
}

// weaken makes mutants of what must be true together, one of each part.
func (f *checkFinder) weaken(cond ast.Expr) {
	all := operands(cond, token.LAND)
	if len(all) < 2 || slices.Contains([]string{"appended", "foreign", "sameFault"}, f.functions[len(f.functions)-1]) { // they name what is found already
		return
	}
	for _, e := range all {
		n := f.add(e)
		f.put(e.Pos(), "((")
		f.put(e.End(), fmt.Sprintf(") || disabledCheck(%d))", n))
	}
}

// skip makes mutants that leave out the findings among statements.
func (f *checkFinder) skip(body []ast.Stmt) {
	for _, s := range body {
		call, ok := s.(*ast.ExprStmt)
		if !ok || !isCallOf(call.X, f.reporters) {
			continue
		}
		n := f.add(call)
		f.put(call.Pos(), fmt.Sprintf("if !disabledCheck(%d) {\n", n))
		f.put(call.End(), "\n}")
	}
}

func operands(e ast.Expr, op token.Token) []ast.Expr {
	if b, ok := e.(*ast.BinaryExpr); ok && b.Op == op {
		return append(operands(b.X, op), operands(b.Y, op)...)
	}
	return []ast.Expr{e}
}

func (f *checkFinder) put(at token.Pos, text string) {
	f.edits = append(f.edits, edit{f.fset.Position(at).Offset, text})
}

// add notes a check, and returns its number.
func (f *checkFinder) add(n ast.Node) int {
	text := string(f.source[f.fset.Position(n.Pos()).Offset:f.fset.Position(n.End()).Offset])
	text = strings.Join(strings.Fields(text), " ")
	if r := []rune(text); len(r) > 100 {
		text = string(r[:100]) + "..."
	}
	name := fmt.Sprintf("%s %s: %s", f.file, f.functions[len(f.functions)-1], text)
	if f.names[name]++; f.names[name] > 1 {
		name = fmt.Sprintf("%s (%d)", name, f.names[name])
	}
	f.checks = append(f.checks, &check{f.first + len(f.checks) + 1, f.file, name, f.fset.Position(n.Pos()).Line})
	return f.first + len(f.checks)
}

// apply returns the source with all edits.
func (f *checkFinder) apply() []byte {
	slices.SortStableFunc(f.edits, func(a, b edit) int { return cmp.Compare(a.at, b.at) })
	var b []byte
	at := 0
	for _, e := range f.edits {
		b = append(b, f.source[at:e.at]...)
		b = append(b, e.text...)
		at = e.at
	}
	return append(b, f.source[at:]...)
}

// overlay writes the sources and the file for -overlay that puts them in place of the module's.
func overlay(t *testing.T, root string, sources map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	for name, source := range sources {
		path := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(path, source, 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root, name)] = path
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
