package query

import (
	"cmp"
	"context"
	"net/http"
	"slices"

	"github.com/google/uuid"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/httpserver"
)

// settings of a workspace as they are shown.
type settings struct {
	KeepResourceIDEmpty bool               `json:"keep_resource_id_empty"`
	SecretPolicy        event.SecretPolicy `json:"secret_policy"`
	RateLimit           *rateLimit         `json:"rate_limit"`
}

func showSettings(s control.Settings) settings {
	return settings{s.KeepResourceIDEmpty, cmp.Or(s.SecretPolicy, event.SecretsFlag), showLimit(s.RateLimit)}
}

// ownSettings are the settings of the caller's workspace, with its version.
type ownSettings struct {
	settings
	Version uint64 `json:"version"`
}

// workspace is a workspace as it is shown.
type workspace struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Lanes     uint32   `json:"lanes"`
	CreatedAt string   `json:"created_at"`
	Settings  settings `json:"settings"`
	Version   uint64   `json:"version"`
}

func showWorkspace(w *control.Workspace) workspace {
	return workspace{
		uuid.UUID(w.ID).String(), w.Name, w.Lanes, event.FormatTime(w.CreatedAt), showSettings(w.Settings), w.Version,
	}
}

// settingsFields are the settings that a request names.
type settingsFields struct {
	KeepResourceIDEmpty given[bool]               `json:"keep_resource_id_empty"`
	SecretPolicy        given[event.SecretPolicy] `json:"secret_policy"`
	RateLimit           given[*rateLimit]         `json:"rate_limit"`
}

const knownSettings = "keep_resource_id_empty, secret_policy, rate_limit"

func (f *settingsFields) apply(s *control.Settings) {
	f.KeepResourceIDEmpty.to(&s.KeepResourceIDEmpty)
	f.SecretPolicy.to(&s.SecretPolicy)
	if f.RateLimit.there {
		s.RateLimit = f.RateLimit.value.limit()
	}
}

func noWorkspace() error {
	return httpserver.NotFound("There is no workspace with this id that the API key may see.")
}

// isOperator reports whether a key may manage every workspace.
func (s *Service) isOperator(p *control.Principal) bool {
	return p.Workspace.Name == s.cfg.OperatorWorkspace
}

// mayManage reports whether a key may manage a workspace, which need not be there.
func (s *Service) mayManage(p *control.Principal, id [16]byte) bool {
	return id == p.Workspace.ID || s.isOperator(p)
}

// requireOperator returns the 403 of those who may not create or delete workspaces.
func (s *Service) requireOperator(p *control.Principal) error {
	if s.isOperator(p) {
		return nil
	}
	return httpserver.Forbidden("Only API keys of the operators' workspace may create or delete workspaces: ask the operator.")
}

// checkSettings returns the 403 of those who would change what is the operator's: how much of the installation a workspace
// may use.
func (s *Service) checkSettings(p *control.Principal, f *settingsFields) error {
	if !f.RateLimit.there || s.isOperator(p) {
		return nil
	}
	return httpserver.Forbidden("Only API keys of the operators' workspace may set rate_limit of a workspace: leave it out, and " +
		"ask the operator. rate_limit of an API key is yours to set.")
}

// getSettings is GET /settings.
func (s *Service) getSettings(_ context.Context, p *control.Principal, _ *http.Request) (reply, error) {
	w := p.Workspace
	return reply{status: http.StatusOK, version: w.Version, data: ownSettings{showSettings(w.Settings), w.Version}}, nil
}

// updateSettings is PATCH /settings.
func (s *Service) updateSettings(ctx context.Context, p *control.Principal, r *http.Request) (reply, error) {
	var body settingsFields
	if err := readBody(r, &body, knownSettings); err != nil {
		return reply{}, err
	}
	w, err := s.changeSettings(ctx, p, r, p.Workspace.ID, &body)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, version: w.Version, data: ownSettings{showSettings(w.Settings), w.Version}}, nil
}

func (s *Service) changeSettings(
	ctx context.Context, p *control.Principal, r *http.Request, id [16]byte, fields *settingsFields,
) (*control.Workspace, error) {
	if err := s.checkSettings(p, fields); err != nil {
		return nil, err
	}
	version, err := ifMatch(r)
	if err != nil {
		return nil, err
	}
	w, err := s.writer.UpdateWorkspace(ctx, author(p), id, version, fields.apply)
	if err != nil {
		return nil, err
	}
	s.seenWorkspace(ctx, w)
	return w, nil
}

// listWorkspaces is GET /workspaces.
func (s *Service) listWorkspaces(_ context.Context, p *control.Principal, r *http.Request) (reply, error) {
	place := func(w *control.Workspace) position { return positionOf(w.CreatedAt, w.ID) }
	all := slices.DeleteFunc(s.view.Workspaces(), func(w *control.Workspace) bool { return !s.mayManage(p, w.ID) })
	slices.SortFunc(all, func(a, b *control.Workspace) int { return comparePositions(place(a), place(b)) })
	return listReply(r, p, endpointWorkspaces, all, place, showWorkspace)
}

// createWorkspace is POST /workspaces.
func (s *Service) createWorkspace(ctx context.Context, p *control.Principal, r *http.Request) (reply, error) {
	if err := s.requireOperator(p); err != nil {
		return reply{}, err
	}
	var body struct {
		Name     given[string]         `json:"name"`
		Lanes    given[uint32]         `json:"lanes"`
		Settings given[settingsFields] `json:"settings"`
	}
	if err := readBody(r, &body, "name, lanes, settings"); err != nil {
		return reply{}, err
	}
	n := control.NewWorkspace{Name: body.Name.value, Lanes: body.Lanes.value}
	body.Settings.value.apply(&n.Settings)
	w, err := s.writer.CreateWorkspace(ctx, author(p), n)
	if err != nil {
		return reply{}, err
	}
	s.seenWorkspace(ctx, w)
	return reply{status: http.StatusCreated, version: w.Version, data: showWorkspace(w)}, nil
}

// visible returns the workspace of the request's path, where the key may see it.
func (s *Service) visible(p *control.Principal, r *http.Request) (*control.Workspace, error) {
	id, ok := pathID(r)
	if !ok || !s.mayManage(p, id) {
		return nil, noWorkspace()
	}
	w, ok := s.view.Workspace(id)
	if !ok {
		return nil, noWorkspace()
	}
	return w, nil
}

// getWorkspace is GET /workspaces/{id}.
func (s *Service) getWorkspace(_ context.Context, p *control.Principal, r *http.Request) (reply, error) {
	w, err := s.visible(p, r)
	if err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, version: w.Version, data: showWorkspace(w)}, nil
}

// updateWorkspace is PATCH /workspaces/{id}.
func (s *Service) updateWorkspace(ctx context.Context, p *control.Principal, r *http.Request) (reply, error) {
	w, err := s.visible(p, r)
	if err != nil {
		return reply{}, err
	}
	var body struct {
		Settings given[settingsFields] `json:"settings"`
	}
	if err := readBody(r, &body, "settings"); err != nil {
		return reply{}, err
	}
	if w, err = s.changeSettings(ctx, p, r, w.ID, &body.Settings.value); err != nil {
		return reply{}, err
	}
	return reply{status: http.StatusOK, version: w.Version, data: showWorkspace(w)}, nil
}

// deleteWorkspace is DELETE /workspaces/{id}.
func (s *Service) deleteWorkspace(ctx context.Context, p *control.Principal, r *http.Request) (reply, error) {
	w, err := s.visible(p, r)
	if err != nil {
		return reply{}, err
	}
	if err := s.requireOperator(p); err != nil {
		return reply{}, err
	}
	if w.ID == p.Workspace.ID {
		return reply{}, httpserver.Conflict("This is the operators' workspace: without it nobody could manage the others here.")
	}
	version, err := ifMatch(r)
	if err != nil {
		return reply{}, err
	}
	if err := s.writer.DeleteWorkspace(ctx, author(p), w.ID, version); err != nil {
		return reply{}, err
	}
	s.seen(ctx, func() bool {
		_, there := s.view.Workspace(w.ID)
		return !there
	})
	return reply{status: http.StatusOK, data: deleted{uuid.UUID(w.ID).String(), true}}, nil
}

// seenWorkspace waits until this instance knows of a workspace's version.
func (s *Service) seenWorkspace(ctx context.Context, changed *control.Workspace) {
	s.seen(ctx, func() bool {
		w, ok := s.view.Workspace(changed.ID)
		return ok && w.Version >= changed.Version
	})
}
