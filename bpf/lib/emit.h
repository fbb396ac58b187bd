/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_EMIT_H
#define SIDELIGHT_EMIT_H

#include "account.h"
#include "identity.h"

/* Unread bytes at which user space is woken; below it, it comes by itself on a timer. Set at load from the ring's size. */
const volatile __u64 wakeup_bytes = 512 << 10;

/*
 * How far user space has read; written by it only. What it has read is still in the ring until it is in the access log or handed to exporters, so that one
 * who is killed in between leaves it to the next.
 */
volatile __u64 read_position;

/*
 * A wake-up inside the hook costs the traced CPU about a microsecond (irq_work and an IPI), the submit about 25 ns. The query
 * reads a position of the ring without its lock.
 */
static __always_inline __u64 emit_flags(void)
{
	return bpf_ringbuf_query(&events, BPF_RB_PROD_POS) - read_position >= wakeup_bytes ? BPF_RB_FORCE_WAKEUP
											   : BPF_RB_NO_WAKEUP;
}

/*
 * Bits of enum mesh_kind that are not to be sent; written by user space only, also while programs run. What they would have told
 * comes with a later event, the sweep, or as sums.
 */
volatile __u32 silent;

/*
 * User space waits for the next event without a timer; set by it, cleared by whoever wakes it.
 *
 * Nothing is left behind: user space sets this, then looks at the ring once more, then waits; a program commits its event, then looks
 * at this. There is a full barrier between the two steps on either side (commit is an xchg), so at least one of them sees the other.
 */
volatile __u32 reader_asleep;

/*
 * Comes after each event. Its own wake-up is that of an empty record, which readers skip, because to ask for one with the event would be to
 * look before the event is there. Where there is no room for it the ring is full, and the event that filled it woke user space.
 */
static __always_inline void emit_wake(void)
{
	void *empty;

	if (!reader_asleep || !__sync_lock_test_and_set(&reader_asleep, 0))
		return;
	empty = bpf_ringbuf_reserve(&events, 8, 0);
	if (empty)
		bpf_ringbuf_discard(empty, BPF_RB_FORCE_WAKEUP);
}

/* A MESH_CLOSE with its decision, which is there if its flag says so. */
struct mesh_told_close {
	struct mesh_close_event close;
	struct mesh_decision decision;
};

struct mesh_told_event {
	struct mesh_event event;
	struct mesh_decision decision;
};

/*
 * decided: NULL without a decision. tells: enum mesh_told, what user space knows once it has this event. A lost one leaves it to the next to
 * tell. step: ACCOUNT() of what happened.
 */
static __always_inline void emit_event(struct mesh_connection *conn, const struct mesh_decided *decided, __u8 kind, __u32 tells,
				       __u32 step, __u64 now)
{
	struct mesh_told_event *both;
	struct mesh_event *out;

	if (silent & 1U << kind) {
		account_step(ACCOUNT(sampled_out[kind]), step);
		return;
	}
	if (decided) {
		both = bpf_ringbuf_reserve(&events, sizeof(*both), 0);
		out = &both->event;
	} else {
		out = bpf_ringbuf_reserve(&events, sizeof(*out), 0);
	}
	if (!out) {
		account_step(ACCOUNT(reserve_failed[kind]), step);
		return;
	}
	*out = conn->event;
	out->told = __sync_fetch_and_or(&conn->told, tells);
	out->kind = kind;
	out->event_ns = now;
	if (decided)
		((struct mesh_told_event *)out)->decision = decided->decision;
	bpf_ringbuf_submit(out, emit_flags());
	account_step(ACCOUNT(submitted[kind]), step);
	emit_wake();
}

/* Whether user space gets it. Its size makes one call with a copy in the kernel cheaper than filling in what was reserved. */
static __always_inline bool emit_close(const bool in_mesh, struct mesh_told_close *out, __u32 step)
{
	__u64 size = in_mesh && out->close.event.flags & MESH_DECIDED ? sizeof(*out) : sizeof(out->close);

	if (bpf_ringbuf_output(&events, out, size, emit_flags()))
		return false;
	account_step(ACCOUNT(submitted[MESH_CLOSE]), step);
	emit_wake();
	return true;
}

#endif
