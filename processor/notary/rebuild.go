package notary

import "context"

func (l *leader) rebuild(ctx context.Context, r *restorer, checkpoints limits) (bool, error) {
	return false, disagree("notary_state is lost")
}
