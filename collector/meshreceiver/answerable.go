package meshreceiver

import "context"

type answerable struct{}

// delivery is the context that the receiver hands data on with.
func delivery() context.Context { return context.WithValue(context.Background(), answerable{}, true) }

// Answerable says of a consumer's context that an error goes back to the mesh receiver, which tries again or counts what is lost.
func Answerable(ctx context.Context) bool { return ctx.Value(answerable{}) != nil }
