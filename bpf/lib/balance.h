/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which backend: one look into a table that user space made, however many there are. */
#ifndef SIDELIGHT_BALANCE_H
#define SIDELIGHT_BALANCE_H

#include "../maps.h"

static __always_inline __u64 balance_slot(__u32 index)
{
	__u64 *slot = bpf_map_lookup_elem(&slots, &index);

	return slot ? *slot : 0;
}

/* Alias method (Vose): one of `size` pairs, then one of the two; any weights, exactly. */
static __always_inline __u32 balance_random(const struct mesh_table *table)
{
	__u32 pair = table->first_slot, threshold;
	__u64 slot;

	if (table->size > 1)
		pair += 2 * (__u32)((__u64)bpf_get_prandom_u32() * table->size >> 32);
	slot = balance_slot(pair);
	threshold = slot >> 32;
	if (threshold == ~0U || bpf_get_prandom_u32() < threshold)
		return slot;
	return balance_slot(pair + 1);
}

static __always_inline __u64 balance_open(__u32 backend)
{
	struct mesh_load *load = bpf_map_lookup_elem(&loads, &backend);

	return load ? *(volatile __u64 *)&load->open : 0;
}

static __always_inline __u32 balance_weight(__u32 backend)
{
	struct mesh_backend *b = bpf_map_lookup_elem(&backends, &backend);

	return b ? b->weight : 1;
}

/* Of two by their weights the one that has fewer open connections for its weight: nearly as good as the least of all, and does not herd. */
static __always_inline __u32 balance_least(const struct mesh_table *table)
{
	__u32 one = balance_random(table), other = balance_random(table);

	if (one == other)
		return one;
	return balance_open(one) * balance_weight(other) <= balance_open(other) * balance_weight(one) ? one : other;
}

static __always_inline __u32 balance_turn(const struct mesh_table *table)
{
	__u32 pool = table->pool;
	__u64 *turn = bpf_map_lookup_elem(&turns, &pool);

	if (!turn)
		return 0;
	return balance_slot(table->first_slot + (__u32)(__sync_fetch_and_add(turn, 1ULL) % table->size));
}

/* affinity: the same for the same client. */
static __always_inline __u32 balance_maglev(const struct mesh_table *table, __u32 affinity)
{
	/* The finalizer of MurmurHash3: what is alike must not fall together. */
	affinity ^= affinity >> 16;
	affinity *= 0x85ebca6b;
	affinity ^= affinity >> 13;
	affinity *= 0xc2b2ae35;
	affinity ^= affinity >> 16;
	return balance_slot(table->first_slot + affinity % table->size);
}

/* 0: none. The table has choices. */
static __always_inline __u32 balance_choose(const struct mesh_table *table, __u32 affinity)
{
	switch (table->algorithm) {
	case MESH_RANDOM:
		return balance_random(table);
	case MESH_ROUND_ROBIN:
		return balance_turn(table);
	case MESH_LEAST_CONNECTIONS:
		return balance_least(table);
	case MESH_MAGLEV:
		return balance_maglev(table, affinity);
	}
	return 0;
}

#endif
