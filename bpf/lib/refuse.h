/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Connections that the mesh refuses: they have no life that other hooks could tell of, only this one event. */
#ifndef SIDELIGHT_REFUSE_H
#define SIDELIGHT_REFUSE_H

#include "account.h"
#include "emit.h"
#include "lost.h"

struct mesh_refused {
	struct mesh_close_event close;
	struct mesh_decision decision;
};

/* The same sums as of an event that gets through. */
static __always_inline void refuse_lost(const struct mesh_event *event, const struct mesh_decision *decision)
{
	bool by_edge;
	struct mesh_lost *sums = lost_find(event, event->reason, decision->service, decision->destination, &by_edge);

	if (!sums)
		return;
	if (event->role == MESH_CLIENT)
		__sync_fetch_and_add(&sums->attempts, 1ULL);
	__sync_fetch_and_add(&sums->failed, 1ULL);
	if (by_edge)
		account_add(aggregated);
	else
		account_add(totalled);
}

/* Of the event's flags. */
#define REFUSE_FLAGS (MESH_DECIDED | MESH_REFUSED_HERE)

/* Unread bytes above which a refusal is told as sums only. Set at load, to a quarter of the ring: half of it may be read and not given back yet. */
const volatile __u64 refuse_bytes = 1 << 20;

/* Returns ACCOUNT() of what came of it. */
static __always_inline __u32 refuse_send(const struct mesh_event *event, const struct mesh_decision *decision)
{
	struct mesh_refused *out = NULL;
	bool silenced = silent & 1U << MESH_CLOSE;

	/* A refusal costs who asks for it next to nothing: a loop of them is not to take the room of everybody's connections. */
	if (!silenced && bpf_ringbuf_query(&events, BPF_RB_PROD_POS) - read_position < refuse_bytes)
		out = bpf_ringbuf_reserve(&events, sizeof(*out), 0);
	if (!out) {
		refuse_lost(event, decision);
		return silenced ? ACCOUNT(sampled_out[MESH_CLOSE]) : ACCOUNT(reserve_failed[MESH_CLOSE]);
	}
	__builtin_memset(out, 0, sizeof(*out));
	out->close.event = *event;
	out->close.event.kind = MESH_CLOSE;
	out->close.min_rtt_us = ~0U;
	out->decision = *decision;
	bpf_ringbuf_submit(out, emit_flags());
	return ACCOUNT(submitted[MESH_CLOSE]);
}

/* Tells of it. event: who, where and why, and REFUSE_FLAGS; its times are those of the call. */
static __always_inline void refuse_tell(const struct mesh_event *event, const struct mesh_decision *decision)
{
	__u32 told = refuse_send(event, decision);

	if (event->role == MESH_CLIENT) {
		account_step(told, ACCOUNT(refused[MESH_CLIENT]));
		account_step(ACCOUNT(attempts),
			     ACCOUNT(failed)); /* in this order: nothing is to seem to be at rest that is not */
	} else {
		account_step(told, ACCOUNT(refused[MESH_SERVER]));
	}
	if (told == ACCOUNT(submitted[MESH_CLOSE]))
		emit_wake();
}

#endif
