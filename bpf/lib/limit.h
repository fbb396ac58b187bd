/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Limits of connections: taken where a connect begins, given back where the connection ends, and never more than once. */
#ifndef SIDELIGHT_LIMIT_H
#define SIDELIGHT_LIMIT_H

#include "../maps.h"

#define LIMIT_SECOND 1000000000ULL

/* Takes one of everything that the limit bounds, or nothing; then it is said what stood against it. */
static __always_inline __u8 limit_take(__u32 index, __u64 now, __u32 *bound)
{
	struct mesh_limit_state *state;
	struct mesh_limit *limit, l;
	__u8 reason = MESH_OK;
	__u64 cost, full;

	limit = bpf_map_lookup_elem(&limits, &index);
	state = bpf_map_lookup_elem(&limit_states, &index);
	if (!limit || !state)
		return MESH_OK;
	l.max_open = *(volatile __u32 *)&limit->max_open;
	l.max_connecting = *(volatile __u32 *)&limit->max_connecting;
	l.per_second = *(volatile __u32 *)&limit->per_second;
	l.burst = *(volatile __u32 *)&limit->burst;
	cost = l.per_second ? LIMIT_SECOND / l.per_second : 0;
	full = cost * l.burst;
	bpf_spin_lock(&state->lock);
	if (l.max_open && state->counts.open >= l.max_open) {
		state->counts.rejected_open++;
		*bound = l.max_open;
		reason = MESH_CIRCUIT_OPEN;
	} else if (l.max_connecting && state->counts.connecting >= l.max_connecting) {
		state->counts.rejected_connecting++;
		*bound = l.max_connecting;
		reason = MESH_CIRCUIT_OPEN;
	} else if (cost) {
		/* A CPU that read the clock before another may get the lock after it. */
		if (now > state->filled_ns) {
			state->tokens_ns += now - state->filled_ns;
			state->filled_ns = now;
		}
		if (state->tokens_ns > full)
			state->tokens_ns = full;
		if (state->tokens_ns < cost) {
			state->counts.rejected_rate++;
			*bound = l.per_second;
			reason = MESH_RATE_LIMITED;
		} else {
			state->tokens_ns -= cost;
		}
	}
	if (reason == MESH_OK) {
		state->counts.open++;
		state->counts.connecting++;
	}
	bpf_spin_unlock(&state->lock);
	return reason;
}

/* what: enum mesh_holds. */
static __always_inline void limit_give(__u32 index, __u32 what)
{
	struct mesh_limit_state *state;

	if (!index)
		return;
	state = bpf_map_lookup_elem(&limit_states, &index);
	if (!state)
		return;
	bpf_spin_lock(&state->lock);
	if (what & MESH_HOLDS_OPEN)
		state->counts.open--;
	if (what & MESH_HOLDS_CONNECTING)
		state->counts.connecting--;
	bpf_spin_unlock(&state->lock);
}

#endif
