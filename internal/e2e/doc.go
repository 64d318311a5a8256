// Package e2e holds the tests of the whole: they build the immutable binary, run it as a user or an operator would,
// kill it in the worst places, and compare what a client was promised with what the topics and tables hold.
package e2e
