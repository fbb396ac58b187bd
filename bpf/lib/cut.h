/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Open connections that the mesh ends: those that policies no longer allow, and those to an endpoint whose time to drain is over. */
#ifndef SIDELIGHT_CUT_H
#define SIDELIGHT_CUT_H

#include "decided.h"
#include "inbound.h"
#include "policy.h"
#include "socket.h"

/* Since 6.5, and for iterators only. */
extern int bpf_sock_destroy(struct sock_common *sk) __weak __ksym;

/*
 * What to cut; set by user space before it runs the iterator. cut_denied: of this role (enum mesh_role), what policies no longer allow; clients first, because
 * their line is to say so, and not that the server reset it. cut_backend 0: none for draining.
 */
volatile __u32 cut_denied;
volatile __u32 cut_backend;
volatile __u32 cut_tag;

static __always_inline bool cut_is_drained(const struct mesh_decided *d)
{
	return cut_backend && d->decision.backend == cut_backend && d->decision.backend_tag == cut_tag;
}

/* Who the server is now: an index of the time when it was connected to may be another's since. */
static __always_inline __u32 cut_destination(const struct mesh_decided *d, __u64 netns, const __u8 *addr, __u32 port, bool here)
{
	struct mesh_address server;
	struct mesh_backend *backend;
	__u32 index;

	__builtin_memcpy(server.addr, addr, sizeof(server.addr));
	index = identity_of_address(&server);
	if (!index)
		index = listener_find(netns, &server, port, here || listener_is_loopback(&server));
	if (index || !d || !d->decision.backend)
		return index;
	index = d->decision.backend;
	backend = bpf_map_lookup_elem(&backends, &index);
	return backend && backend->tag == d->decision.backend_tag ? backend->workload : 0;
}

/* Asks the policies of today. */
static __always_inline bool cut_is_denied(const struct mesh_decided *d, const struct mesh_event *ends, __u64 netns, __u32 source)
{
	bool here = cut_denied == MESH_SERVER;
	struct policy_question q = {.source = source, .port = here ? ends->local_port : ends->peer_port, .address_known = true};
	struct mesh_decision now = {};
	struct mesh_workload *workload;
	__u32 index;

	index = cut_destination(d, netns, here ? ends->local_addr : ends->peer_addr, q.port, here);
	workload = bpf_map_lookup_elem(&workloads, &index);
	if (!index || !workload)
		return false;
	q.set = *(volatile __u32 *)&workload->policy_set;
	if (!q.set)
		return false;
	__builtin_memcpy(q.address.addr, here ? ends->peer_addr : ends->local_addr, sizeof(q.address.addr));
	policy_decide(&now, &q, false);
	return policy_denies(&now);
}

/*
 * One that a server accepted when it had no policies: who the client is was not asked then. Only of who is known by his address: of the others on this
 * machine the client's end says who they are, and with it the server's ends too.
 */
static __always_inline bool cut_unjudged(const struct mesh_event *ends, __u64 netns)
{
	struct mesh_address client;
	__u32 source;

	__builtin_memcpy(client.addr, ends->peer_addr, sizeof(client.addr));
	source = inbound_class(identity_of_address(&client));
	return source && cut_is_denied(NULL, ends, netns, source);
}

static __always_inline void cut_connection(struct sock_common *skc, struct tcp_sock *tp)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	struct mesh_connection *conn;
	struct mesh_event ends = {};
	struct mesh_decided *d;
	bool denied;
	__u64 netns;

	switch (sk->__sk_common.skc_state) {
	case BPF_TCP_LISTEN:
	case BPF_TCP_CLOSE:
		return;
	}
	conn = bpf_sk_storage_get(&connections, tp, NULL, 0);
	if (!conn)
		return;
	d = decided_of(true, conn);
	if (d && cut_is_drained(d)) {
		bpf_sock_destroy(skc);
		return;
	}
	if (cut_denied != conn->event.role)
		return;
	address_from_socket(&ends, &sk->__sk_common);
	netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, net_cookie);
	if (d)
		denied = cut_is_denied(d, &ends, netns, d->source);
	else
		denied = cut_denied == MESH_SERVER && cut_unjudged(&ends, netns);
	if (denied) {
		conn->event.flags |= MESH_REVOKED;
		bpf_sock_destroy(skc);
	}
}

#endif
