/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who listens where: the identity of a server whose address is not its own, such as those that share the host's. */
#ifndef SIDELIGHT_LISTENER_H
#define SIDELIGHT_LISTENER_H

#include "account.h"
#include "address.h"
#include "identity.h"

static __always_inline void listener_key(struct mesh_listen *key, const struct sock_common *skc, __u64 netns)
{
	__u32 *word = (__u32 *)key->addr;

	__builtin_memset(key, 0, sizeof(*key));
	key->netns = netns;
	key->port = skc->skc_num;
	if (skc->skc_family == AF_INET) {
		if (skc->skc_rcv_saddr)
			address_from_v4(key->addr, skc->skc_rcv_saddr);
		return;
	}
	word[0] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[0];
	word[1] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[1];
	word[2] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[2];
	word[3] = skc->skc_v6_rcv_saddr.in6_u.u6_addr32[3];
}

static __always_inline bool listener_make(const struct mesh_listen *key, __u32 workload, __u32 refs)
{
	struct mesh_listener made = {.workload = workload, .refs = refs};
	__u32 *count = bpf_map_lookup_elem(&listens, &workload);

	if (!count || *(volatile __u32 *)count >= MESH_LISTENERS_EACH)
		return false;
	if (bpf_map_update_elem(&listeners, key, &made, BPF_NOEXIST))
		return false;
	__sync_fetch_and_add(count, 1);
	return true;
}

/*
 * TCP_LISTEN_CB, or a listener from before us. Who belongs to no workload takes the place of one that listened there before, but makes none.
 *
 * User space deletes entries without refs. It sees the value as it was when it went: so a ref that is taken before a look finds the entry still in
 * its place is seen by it, and it puts the entry back; one that is taken later finds another entry or none, and tries again.
 */
static __always_inline void listener_add(const struct mesh_listen *key, __u32 workload)
{
	struct mesh_listener *l;

	for (int tries = 0; tries < 4; tries++) {
		l = bpf_map_lookup_elem(&listeners, key);
		if (!l) {
			if (!workload || listener_make(key, workload, 1))
				return;
			continue;
		}
		*(volatile __u32 *)&l->workload = workload;
		__sync_fetch_and_add(&l->refs, 1);
		if (bpf_map_lookup_elem(&listeners, key) == l)
			return;
	}
	account_add(listeners_failed);
}

/* STATE_CB from TCP_LISTEN. */
static __always_inline void listener_remove(const struct mesh_listen *key)
{
	struct mesh_listener *l = bpf_map_lookup_elem(&listeners, key);

	if (l)
		__sync_fetch_and_sub(&l->refs, 1);
}

/* Who listens at an address and a port; 0: nobody of the mesh. */
static __always_inline __u32 listener_find(__u64 netns, const struct mesh_address *addr, __u32 port)
{
	struct mesh_listen key = {.netns = netns, .port = port};
	struct mesh_listener *l;

	__builtin_memcpy(key.addr, addr->addr, sizeof(key.addr));
	l = bpf_map_lookup_elem(&listeners, &key);
	if (!l) {
		__builtin_memset(key.addr, 0, sizeof(key.addr));
		l = bpf_map_lookup_elem(&listeners, &key);
	}
	return l ? *(volatile __u32 *)&l->workload : 0;
}

#endif
