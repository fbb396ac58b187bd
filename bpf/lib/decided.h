/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the mesh decided of a socket's connection, and what is held for it until it ends. */
#ifndef SIDELIGHT_DECIDED_H
#define SIDELIGHT_DECIDED_H

#include "identity.h"
#include "limit.h"

/* The room for it in a connection's state; for programs that run where there is a mesh only: elsewhere there is none. */
static __always_inline struct mesh_decided *decided_room(struct mesh_connection *conn)
{
	return &((struct mesh_connection_in_mesh *)conn)->decided;
}

/* NULL: nothing was decided, or there is no state. */
static __always_inline struct mesh_decided *decided_of(const bool in_mesh, struct mesh_connection *conn)
{
	return in_mesh && conn && conn->event.flags & MESH_DECIDED ? decided_room(conn) : NULL;
}

/*
 * Gives back what is held of `what`. Whoever takes a bit away gives back what it stands for: a process that closes the socket and
 * a packet that ends the connection can come at the same time.
 */
static __always_inline void decided_give(struct mesh_decided *d, __u32 what)
{
	struct mesh_load *load;
	__u32 had, backend;

	had = __sync_fetch_and_and(&d->holds, ~what) & what;
	if (had & MESH_HOLDS_BACKEND) {
		backend = d->decision.backend;
		load = bpf_map_lookup_elem(&loads, &backend);
		if (load)
			__sync_fetch_and_sub(&load->open, 1ULL);
	}
	if (had & (MESH_HOLDS_OPEN | MESH_HOLDS_CONNECTING)) {
		limit_give(d->limits[0], had);
		limit_give(d->limits[1], had);
	}
}

/* TCP_CONNECT_CB: from here on the end of the connection is seen. */
static __always_inline void decided_sent(struct mesh_decided *d)
{
	/* By an atomic, as all that changes it: who carries it over from maps of another layout holds no lock. */
	if (d)
		__sync_fetch_and_or(&d->holds, MESH_HOLDS_IN_FLIGHT);
}

static __always_inline void decided_established(struct mesh_decided *d)
{
	if (d && d->holds & MESH_HOLDS_CONNECTING)
		decided_give(d, MESH_HOLDS_CONNECTING);
}

static __always_inline void decided_ended(struct mesh_decided *d, bool established)
{
	struct mesh_load *load;
	__u32 backend;

	if (!d)
		return;
	if (!established && d->holds & MESH_HOLDS_BACKEND) {
		backend = d->decision.backend;
		load = bpf_map_lookup_elem(&loads, &backend);
		if (load)
			__sync_fetch_and_add(&load->failed, 1ULL);
	}
	decided_give(d, MESH_HOLDS_BACKEND | MESH_HOLDS_OPEN | MESH_HOLDS_CONNECTING | MESH_HOLDS_IN_FLIGHT);
}

/*
 * A connect() that failed before its SYN left (no route, no free port) ends nowhere else: what it holds is given back with the next connect() of the
 * socket, or when that is closed.
 */
static __always_inline void decided_abandoned(struct mesh_decided *d)
{
	if (d && d->holds && !(d->holds & MESH_HOLDS_IN_FLIGHT))
		decided_give(d, MESH_HOLDS_BACKEND | MESH_HOLDS_OPEN | MESH_HOLDS_CONNECTING);
}

#endif
