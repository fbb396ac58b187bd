/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The end of a connection: the last event, or when the ring has no room, its sums. */
#ifndef SIDELIGHT_END_H
#define SIDELIGHT_END_H

#include "account.h"
#include "emit.h"
#include "lost.h"
#include "reason.h"
#include "totals.h"

static __always_inline __u32 end_step(const struct mesh_event *event)
{
	if (!event->established_ns)
		return ACCOUNT(failed);
	return event->role == MESH_SERVER ? ACCOUNT(closed[MESH_SERVER]) : ACCOUNT(closed[MESH_CLIENT]);
}

/* Whether this is the end of a connection, and not of something else that its socket did; then the event is filled in. */
static __always_inline bool end_begin(struct mesh_connection *conn, struct mesh_close_event *close)
{
	/* A socket that connected before and listens now still has the flag that brings us here. */
	if (conn->phase != MESH_CONNECTING && conn->phase != MESH_OPEN)
		return false;
	conn->phase = MESH_CLOSED;
	close->event = conn->event;
	close->first_sent_ns = conn->first_sent_ns;
	close->first_received_ns = conn->first_received_ns;
	close->syn_retransmits = conn->syn_retransmits;
	return true;
}

static __always_inline void end_lost(const bool in_mesh, const struct mesh_told_close *out)
{
	if (in_mesh && out->close.event.flags & MESH_DECIDED)
		lost_add(&out->close, out->decision.service, out->decision.destination);
	else
		lost_add(&out->close, 0, 0);
}

/* Tells the end of a connection whose event is filled in, its decision with it if the flag is set. conn: NULL when there is no state. */
static __always_inline void end_tell(const bool in_mesh, struct mesh_told_close *out, struct mesh_connection *conn,
				     struct tcp_sock *tp, __u8 old_state)
{
	struct mesh_close_event *close = &out->close;
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	bool silenced;
	__u32 step;

	close->sk_err = sk->sk_err;
	close->reserved = 0;
	close->event.kind = MESH_CLOSE;
	close->event.old_state = old_state;
	if (in_mesh && conn && conn->event.flags & MESH_REVOKED)
		close->event.reason = MESH_DENIED;
	else
		close->event.reason = reason_of_close(conn, tp, close->event.established_ns != 0, old_state);
	totals_read(close, tp, old_state);
	if (conn) {
		close->event.told = __sync_fetch_and_or(&conn->told, MESH_TOLD_ATTEMPT | MESH_TOLD_ESTABLISHED | MESH_TOLD_END);
		/* Marked, not set to the totals: a sweep that is under way would take those for what it may count from. */
		close->reported_sent_bytes = __sync_lock_test_and_set(&conn->reported_sent_bytes, MESH_REPORTED_ALL);
		close->reported_received_bytes = __sync_lock_test_and_set(&conn->reported_received_bytes, MESH_REPORTED_ALL);
		close->reported_retransmits = __sync_lock_test_and_set(&conn->reported_retransmits, MESH_REPORTED_ALL_32);
		close->reported_syn_retransmits = __sync_lock_test_and_set(&conn->reported_syn_retransmits, MESH_REPORTED_ALL_32);
	}
	step = end_step(&close->event);
	silenced = silent & 1U << MESH_CLOSE;
	if (!silenced && emit_close(in_mesh, out, step))
		return;
	end_lost(in_mesh, out);
	account_step(silenced ? ACCOUNT(sampled_out[MESH_CLOSE]) : ACCOUNT(reserve_failed[MESH_CLOSE]), step);
}

#endif
