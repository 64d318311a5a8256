package ingest

import (
	"context"
	"net/http"

	"github.com/go-kit/kit/endpoint"
	"github.com/go-kit/kit/transport"
	kithttp "github.com/go-kit/kit/transport/http"
)

// submission is one request to write events, decoded.
type submission struct {
	caller
	// events are parts of body, each the text of one.
	events [][]byte
	// body belongs to the submission: whoever is done with events releases it.
	body *buffer
	// cut says that events come from cutJSON: once one is refused, it may be because body is not JSON.
	cut bool
	// idempotencyKey is the request's header; only a single event may have one.
	idempotencyKey string
}

// writeOne is the endpoint of POST /events.
func (s *Service) writeOne(ctx context.Context, sub submission) (outcome, error) {
	outcomes, err := s.write(ctx, sub)
	if err != nil {
		return outcome{}, err
	}
	if rejected := outcomes[0].rejected; rejected != nil {
		return outcome{}, rejection(rejected)
	}
	return outcomes[0], nil
}

// writeBatch is the endpoint of POST /events/batch.
func (s *Service) writeBatch(ctx context.Context, sub submission) ([]outcome, error) {
	return s.write(ctx, sub)
}

// typed turns a function of its own types into go-kit's endpoint. With newServer, which hands it nothing else, it is the
// only place where a type is asserted.
func typed[Req, Resp any](f func(context.Context, Req) (Resp, error)) endpoint.Endpoint {
	return func(ctx context.Context, request any) (any, error) {
		return f(ctx, request.(Req))
	}
}

// newServer serves f over HTTP.
func newServer[Req, Resp any](
	decode func(context.Context, *http.Request) (Req, error),
	f func(context.Context, Req) (Resp, error),
	encode func(context.Context, http.ResponseWriter, Resp) error,
	options ...kithttp.ServerOption,
) http.Handler {
	return kithttp.NewServer(
		typed(f),
		func(ctx context.Context, r *http.Request) (any, error) { return decode(ctx, r) },
		func(ctx context.Context, w http.ResponseWriter, response any) error {
			return encode(ctx, w, response.(Resp))
		},
		options...,
	)
}

func (s *Service) serverOptions() []kithttp.ServerOption {
	return []kithttp.ServerOption{
		kithttp.ServerBefore(begin),
		kithttp.ServerErrorHandler(transport.ErrorHandlerFunc(s.countError)),
		kithttp.ServerErrorEncoder(encodeError),
		kithttp.ServerFinalizer(s.observe),
	}
}
