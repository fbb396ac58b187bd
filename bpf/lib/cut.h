/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Open connections that the mesh ends: those that policies no longer allow, and those to an endpoint whose time to drain is over. */
#ifndef SIDELIGHT_CUT_H
#define SIDELIGHT_CUT_H

#include "decided.h"
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

/* Asks the policies of today. */
static __always_inline bool cut_is_denied(struct policy_question *q, __u32 destination)
{
	struct mesh_decision now = {};
	struct mesh_workload *workload;

	workload = bpf_map_lookup_elem(&workloads, &destination);
	if (!destination || !workload)
		return false;
	q->set = *(volatile __u32 *)&workload->policy_set;
	if (!q->set)
		return false;
	policy_decide(&now, q);
	return now.verdict == MESH_VERDICT_DENY;
}

/* The connection of a client that the mesh had a say in. */
static __always_inline bool cut_client(struct mesh_decided *d, const struct mesh_event *ends)
{
	struct policy_question q = {.source = d->source, .port = ends->peer_port, .address_known = true};

	__builtin_memcpy(q.address.addr, ends->local_addr, sizeof(q.address.addr));
	return cut_is_denied(&q, d->decision.destination);
}

/* One that a server accepted, on policies' word. */
static __always_inline bool cut_server(struct mesh_decided *d, const struct mesh_event *ends)
{
	struct policy_question q = {.source = d->source, .port = ends->local_port, .address_known = true};

	__builtin_memcpy(q.address.addr, ends->peer_addr, sizeof(q.address.addr));
	return cut_is_denied(&q, d->decision.destination);
}

/*
 * One that a server accepted when it had no policies: who the client is was not asked then. Only of who is known by his address: of the others on this
 * machine the client's end says who they are, and with it the server's ends too.
 */
static __always_inline bool cut_unjudged(const struct mesh_event *ends)
{
	struct policy_question q = {.port = ends->local_port, .address_known = true};
	struct mesh_workload *workload;
	struct mesh_address local;
	__u32 index;

	__builtin_memcpy(local.addr, ends->local_addr, sizeof(local.addr));
	__builtin_memcpy(q.address.addr, ends->peer_addr, sizeof(q.address.addr));
	index = identity_of_address(&q.address);
	workload = bpf_map_lookup_elem(&workloads, &index);
	if (!index || !workload || !workload->source)
		return false;
	q.source = workload->source;
	return cut_is_denied(&q, identity_of_address(&local)); /* who has none and shares an address had no policies then */
}

static __always_inline void cut_connection(struct sock_common *skc, struct tcp_sock *tp)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	struct mesh_connection *conn;
	struct mesh_event ends = {};
	struct mesh_decided *d;
	bool denied;

	switch (sk->__sk_common.skc_state) {
	case BPF_TCP_LISTEN:
	case BPF_TCP_CLOSE:
		return;
	}
	conn = bpf_sk_storage_get(&connections, tp, NULL, 0);
	if (!conn)
		return;
	d = bpf_sk_storage_get(&decisions, tp, NULL, 0);
	if (d && cut_is_drained(d)) {
		bpf_sock_destroy(skc);
		return;
	}
	if (cut_denied != conn->event.role)
		return;
	address_from_socket(&ends, &sk->__sk_common);
	if (!d)
		denied = cut_denied == MESH_SERVER && cut_unjudged(&ends);
	else if (cut_denied == MESH_SERVER)
		denied = cut_server(d, &ends);
	else
		denied = cut_client(d, &ends);
	if (denied) {
		conn->event.flags |= MESH_REVOKED;
		bpf_sock_destroy(skc);
	}
}

#endif
