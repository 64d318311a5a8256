module getimmutable.dev/immutable/bench

go 1.26.0

require (
	github.com/aclements/go-moremath v0.0.0-20210112150236-f10218a38794 // indirect
	golang.org/x/time v0.16.0 // indirect
)

require (
	getimmutable.dev/immutable v0.0.0
	golang.org/x/perf v0.0.0-20260908200009-22c9c6c9d4da
)

replace getimmutable.dev/immutable => ../
