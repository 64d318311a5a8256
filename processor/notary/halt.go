package notary

import (
	"errors"
	"fmt"
)

// Reasons why nothing is signed until a person has looked, a label of immutable_notary_halted.
const (
	haltLedger = "ledger"      // a leaf on the ledger topic does not follow from its content and the leaves before it
	haltLost   = "ledger_lost" // leaves were deleted from the ledger topic, or it was cut, before they were read
	haltHeads  = "heads"       // the heads topic states another chain than the ledger topic makes
	haltState  = "state"       // checkpoints and notary_state, or ClickHouse's leaves, contradict each other
	haltLock   = "lock"        // the lock file knows of a checkpoint that is not of this root log
	haltSeen   = "witness"     // a witness has seen a checkpoint of this log that is not of this root log
	haltKey    = "key"         // the key file does not hold the key that the root log states
)

var haltReasons = []string{haltLedger, haltLost, haltHeads, haltState, haltLock, haltSeen, haltKey}

// haltError is why the notary signs nothing until a person has looked and started it again. Signing on could state
// what is not so, or a second history.
type haltError struct {
	err    error
	reason string
}

func (e *haltError) Error() string { return e.err.Error() }

func (e *haltError) Unwrap() error { return e.err }

// halt returns a haltError. Where it wraps one, the reason is that one's.
func halt(reason, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if inner, ok := errors.AsType[*haltError](err); ok {
		reason = inner.reason
	}
	return &haltError{reason: reason, err: err}
}
