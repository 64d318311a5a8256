package main

import (
	"fmt"

	"getimmutable.dev/immutable/witness"
)

type witnessKeyCmd struct {
	Create witnessKeyCreateCmd `cmd:"" help:"Create the key of a witness and print its verifier key."`
}

type witnessKeyCreateCmd struct {
	File      string `help:"New file for the key: a secret of this witness alone." required:"" placeholder:"FILE"`
	Name      string `help:"Name of the witness: a URL of its operator without the scheme, as witness.example.com/w1." required:"" placeholder:"NAME"`
	Algorithm string `help:"ed25519, which every verifier of cosignatures reads, or ml-dsa-44, which quantum computers do not break." default:"ed25519" enum:"ed25519,ml-dsa-44" placeholder:"ALGORITHM"`
}

// Run prints the verifier key alone to standard output.
func (c *witnessKeyCreateCmd) Run(p *process) error {
	key, err := witness.CreateKey(c.File, c.Name, witness.Algorithm(c.Algorithm))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(p.stdout, key.VerifierKey)
	return err
}
