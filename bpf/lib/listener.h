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

static __always_inline bool listener_is_guarded(__u32 workload)
{
	struct mesh_workload *w = workload ? bpf_map_lookup_elem(&workloads, &workload) : NULL;

	return w && *(volatile __u32 *)&w->policy_set;
}

/*
 * TCP_LISTEN_CB. Whether a ref was taken, which is to be given back then. Who belongs to no workload makes no entry. An entry that has listeners stays
 * whose it is, whoever shares the port (SO_REUSEPORT, both families): unless only the newcomer has policies. So nobody takes a port out of
 * somebody's policies by listening there too.
 *
 * User space deletes entries without refs. It sees the value as it was when it went: so a ref that is taken before a look finds the entry still in
 * its place is seen by it, and it puts the entry back; one that is taken later finds another entry or none, and tries again.
 */
static __always_inline bool listener_add(const struct mesh_listen *key, __u32 workload)
{
	struct mesh_listener *l;

	for (int tries = 0; tries < 4; tries++) {
		l = bpf_map_lookup_elem(&listeners, key);
		if (!l) {
			if (!workload)
				return false;
			if (listener_make(key, workload, 1))
				return true;
			continue;
		}
		if (!*(volatile __u32 *)&l->refs || (!listener_is_guarded(l->workload) && listener_is_guarded(workload)))
			*(volatile __u32 *)&l->workload = workload;
		__sync_fetch_and_add(&l->refs, 1);
		if (bpf_map_lookup_elem(&listeners, key) == l)
			return true;
	}
	account_add(listeners_failed);
	return false;
}

/* STATE_CB from TCP_LISTEN. */
static __always_inline void listener_remove(const struct mesh_listen *key)
{
	struct mesh_listener *l = bpf_map_lookup_elem(&listeners, key);

	if (l)
		__sync_fetch_and_sub(&l->refs, 1);
}

static __always_inline bool listener_is_ipv4(const __u32 *word)
{
	return !word[0] && !word[1] && word[2] == bpf_htonl(0xffff);
}

static __always_inline bool listener_is_loopback(const struct mesh_address *addr)
{
	const __u32 *word = (const __u32 *)addr->addr;

	if (listener_is_ipv4(word))
		return (word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !word[0] && !word[1] && !word[2] && word[3] == bpf_htonl(1);
}

/*
 * Who listens at an address and a port; 0: nobody of the mesh. any: whether the address is of this namespace, so that who listens on all of its addresses
 * does on this one.
 */
static __always_inline __u32 listener_find(__u64 netns, const struct mesh_address *addr, __u32 port, bool any)
{
	struct mesh_listen key = {.netns = netns, .port = port};
	__u32 *word = (__u32 *)key.addr;
	struct mesh_listener *l;

	__builtin_memcpy(key.addr, addr->addr, sizeof(key.addr));
	l = bpf_map_lookup_elem(&listeners, &key);
	if (!l && any && listener_is_ipv4(word)) {
		word[3] = 0;
		l = bpf_map_lookup_elem(&listeners, &key);
	}
	if (!l && any) {
		__builtin_memset(key.addr, 0, sizeof(key.addr));
		l = bpf_map_lookup_elem(&listeners, &key);
	}
	return l ? *(volatile __u32 *)&l->workload : 0;
}

#endif
