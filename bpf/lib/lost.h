/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where a MESH_CLOSE goes that finds no room in the ring: its sums are kept, only its line is gone. */
#ifndef SIDELIGHT_LOST_H
#define SIDELIGHT_LOST_H

#include "account.h"

static __always_inline struct mesh_lost *lost_find(const struct mesh_event *event, __u8 reason, __u32 service, __u32 destination,
						   bool *by_edge)
{
	static const struct mesh_lost none;
	struct mesh_lost_key key = {
		.cgroup_id = event->cgroup_id,
		.role = event->role,
		.reason = reason,
		.service = service,
		.destination = destination,
		.refused = !!(event->flags & MESH_REFUSED_HERE),
	};
	struct mesh_lost *sums;
	__u32 total;

	__builtin_memcpy(key.peer_addr, event->peer_addr, sizeof(key.peer_addr));
	sums = bpf_map_lookup_elem(&lost, &key);
	if (!sums) {
		/* Another CPU may be first: then this fails and the look-up finds its entry. */
		bpf_map_update_elem(&lost, &key, &none, BPF_NOEXIST);
		sums = bpf_map_lookup_elem(&lost, &key);
	}
	*by_edge = sums != NULL;
	if (sums)
		return sums;
	total = event->role * MESH_REASON_COUNT + reason;
	return bpf_map_lookup_elem(&lost_totals, &total);
}

/*
 * Adds what the event would have: the same sums that agent/connection makes of one that gets through. A function of its own, not
 * inlined and not static: the verifier looks at it once, not once for each way that leads here.
 */
__noinline int lost_add(const struct mesh_close_event *close, __u32 service, __u32 destination)
{
	const struct mesh_event *event = &close->event;
	bool client, established, adopted, by_edge;
	struct mesh_lost *sums;
	__u32 told;

	if (!close) /* never, but the verifier cannot know */
		return 0;
	told = event->told;
	client = event->role == MESH_CLIENT;
	established = event->established_ns != 0;
	adopted = event->flags & MESH_ADOPTED_OPEN;
	sums = lost_find(event, event->reason, service, destination, &by_edge);
	if (!sums)
		return 0;
	/* Atomic, because a softirq on this CPU can come between load and store. */
	if (client && !adopted && !(told & MESH_TOLD_ATTEMPT))
		__sync_fetch_and_add(&sums->attempts, 1ULL);
	if (client && !adopted && (told & (MESH_TOLD_ATTEMPT | MESH_TOLD_ESTABLISHED)) == MESH_TOLD_ATTEMPT)
		__sync_fetch_and_add(&sums->connecting_down, 1ULL);
	if (adopted && !(told & MESH_TOLD_ESTABLISHED))
		__sync_fetch_and_add(&sums->adopted, 1ULL);
	else if (established && !(told & MESH_TOLD_ESTABLISHED))
		__sync_fetch_and_add(&sums->established, 1ULL);
	if (told & MESH_TOLD_ESTABLISHED)
		__sync_fetch_and_add(&sums->open_down, 1ULL);
	if (established)
		__sync_fetch_and_add(&sums->closed, 1ULL);
	else
		__sync_fetch_and_add(&sums->failed, 1ULL);
	__sync_fetch_and_add(&sums->sent_bytes, close->sent_bytes - close->reported_sent_bytes);
	__sync_fetch_and_add(&sums->received_bytes, close->received_bytes - close->reported_received_bytes);
	__sync_fetch_and_add(&sums->retransmits, (__s64)(__s32)(close->retransmits - close->reported_retransmits));
	__sync_fetch_and_add(&sums->syn_retransmits, (__s64)(__s32)(close->syn_retransmits - close->reported_syn_retransmits));
	/* Last: user space reads the sums when it sees one of these move, and must not come too early for good. */
	if (by_edge)
		account_add(aggregated);
	else
		account_add(totalled);
	return 0;
}

#endif
