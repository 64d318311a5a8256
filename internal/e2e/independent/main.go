// Command independent checks and answers Immutable with what others wrote: tools for root logs that know nothing of it.
// It is a module of its own, so that the product has none of what they need.
//
//	independent check --url URL --vkey KEY
//
// reads a whole root log as C2SP tlog-tiles below URL (checkpoint, tile/...) with Tessera's fsck: every entry, every tile
// and the signature. Exit code 0: all is well; 1: not; 2: usage.
//
//	independent witness --log-vkey KEY --name NAME
//
// is the witness of github.com/transparency-dev/witness for one log, in memory, on a free port. It prints its verifier
// key and its URL, one a line, and ends with its standard input.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	formatsnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"github.com/transparency-dev/witness/persistence/inmemory"
	"github.com/transparency-dev/witness/witness"
	"golang.org/x/mod/sumdb/note"
)

// checkTimeout bounds the check of a whole log.
const checkTimeout = 10 * time.Minute

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	usage := func() int {
		fmt.Fprintln(os.Stderr, "usage: independent check --url URL --vkey KEY | independent witness --log-vkey KEY --name NAME")
		return 2
	}
	if len(args) == 0 {
		return usage()
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	var err error
	switch args[0] {
	case "check":
		at, vkey := flags.String("url", "", "where checkpoint and tile/ are"), flags.String("vkey", "", "the log's verifier key")
		if flags.Parse(args[1:]) != nil || *at == "" || *vkey == "" {
			return usage()
		}
		err = check(*at, *vkey)
	case "witness":
		vkey, name := flags.String("log-vkey", "", "the log's verifier key"), flags.String("name", "", "the witness's name")
		if flags.Parse(args[1:]) != nil || *vkey == "" || *name == "" {
			return usage()
		}
		err = serve(*vkey, *name)
	default:
		return usage()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "independent:", err)
		return 1
	}
	return 0
}

func check(at, vkey string) error {
	u, err := url.Parse(at)
	if err != nil {
		return err
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return fmt.Errorf("verifier key: %w", err)
	}
	source, err := client.NewHTTPFetcher(u, nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	if err := fsck.New(v.Name(), v, source, leafHashes, fsck.Opts{N: 4}).Check(ctx); err != nil {
		return fmt.Errorf("the log at %s: %.300s", at, err) // fsck's errors hold whole tiles
	}
	return nil
}

// leafHashes are those of the entries in a bundle.
func leafHashes(bundle []byte) ([][]byte, error) {
	var b api.EntryBundle
	if err := b.UnmarshalText(bundle); err != nil {
		return nil, err
	}
	hashes := make([][]byte, len(b.Entries))
	for i, e := range b.Entries {
		hashes[i] = rfc6962.DefaultHasher.HashLeaf(e)
	}
	return hashes, nil
}

func serve(logVkey, name string) error {
	v, err := note.NewVerifier(logVkey)
	if err != nil {
		return fmt.Errorf("the log's verifier key: %w", err)
	}
	private, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return err
	}
	signer, err := formatsnote.NewSignerForCosignatureV1(private)
	if err != nil {
		return err
	}
	cosignatures, err := formatsnote.VKeyToCosignatureV1(public)
	if err != nil {
		return err
	}
	w, err := witness.New(context.Background(), witness.Opts{
		Persistence: inmemory.New(), Signers: []note.Signer{signer},
		VerifierForLog: func(_ context.Context, origin string) (note.Verifier, bool, error) { return v, origin == v.Name(), nil },
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add-checkpoint", witness.NewHTTPHandler(w).AddCheckpoint)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("%s\nhttp://%s\n", cosignatures, l.Addr())
	server := &http.Server{Handler: mux, ReadTimeout: time.Minute}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until whoever started this ends, however that ends
		_ = server.Close()
	}()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
