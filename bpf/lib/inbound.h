/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether a SYN may reach its listener. */
#ifndef SIDELIGHT_INBOUND_H
#define SIDELIGHT_INBOUND_H

#include "address.h"
#include "decided.h"
#include "identity.h"
#include "listener.h"
#include "policy.h"
#include "refuse.h"

static __always_inline __u32 inbound_class(__u32 index)
{
	struct mesh_workload *workload = index ? bpf_map_lookup_elem(&workloads, &index) : NULL;

	return workload ? workload->source : 0;
}

/*
 * TCP_CONNECT_CB: tells the server's side who it is, if that is on this machine. Of every connection, also of who is nobody: else an address would
 * say who he is, and a process can bind to another's.
 */
static __always_inline void inbound_announce(const struct mesh_decided *d, struct bpf_sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct mesh_admission admission = {};
	struct mesh_ticket ticket = {};
	struct mesh_event ends;

	if (!tp)
		return;
	address_from_socket(&ends, &tp->inet_conn.icsk_inet.sk.__sk_common);
	ticket.client_port = ends.local_port;
	ticket.server_port = ends.peer_port;
	__builtin_memcpy(ticket.client_addr, ends.local_addr, sizeof(ticket.client_addr));
	__builtin_memcpy(ticket.server_addr, ends.peer_addr, sizeof(ticket.server_addr));
	admission.source = d ? d->source : inbound_class(identity_of_cgroup(tp->inet_conn.icsk_inet.sk.sk_cgrp_data.cgroup));
	bpf_map_update_elem(&tickets, &ticket, &admission, BPF_ANY);
}

static __always_inline __u32 inbound_source(const struct mesh_ticket *ticket)
{
	struct mesh_admission *announced = bpf_map_lookup_elem(&tickets, ticket);
	struct mesh_address address;

	if (announced && !announced->closed_ns)
		return announced->source;
	/* From another machine, or from outside the mesh: its address is all there is. */
	__builtin_memcpy(address.addr, ticket->client_addr, sizeof(address.addr));
	return inbound_class(identity_of_address(&address));
}

/* Fills in ports and addresses as they are on the wire. */
static __always_inline void inbound_ends(struct bpf_sk_lookup *ctx, struct mesh_ticket *ticket)
{
	__u32 *client = (__u32 *)ticket->client_addr, *server = (__u32 *)ticket->server_addr;

	ticket->client_port = bpf_ntohs(ctx->remote_port);
	ticket->server_port = ctx->local_port;
	if (ctx->family == AF_INET) {
		address_from_v4(ticket->client_addr, ctx->remote_ip4);
		address_from_v4(ticket->server_addr, ctx->local_ip4);
		/* Or clang reads the fields of both families at one computed place of the context, which the verifier does not allow. */
		barrier();
		return;
	}
	client[0] = ctx->remote_ip6[0];
	client[1] = ctx->remote_ip6[1];
	client[2] = ctx->remote_ip6[2];
	client[3] = ctx->remote_ip6[3];
	server[0] = ctx->local_ip6[0];
	server[1] = ctx->local_ip6[1];
	server[2] = ctx->local_ip6[2];
	server[3] = ctx->local_ip6[3];
}

/* For how long after a connection's end its packets come for nobody: the answer of a TIME_WAIT to a FIN that crossed its own is one. */
#define INBOUND_STRAY_NS 1000000000ULL

/*
 * The program is not told what kind of packet it is asked for, and a rest of a connection that ended looks to it as a SYN does. Such a one may be dropped as
 * any that is denied, but nobody was refused anything.
 */
static __always_inline bool inbound_is_stray(const struct mesh_ticket *ticket, __u64 now)
{
	struct mesh_admission *last = bpf_map_lookup_elem(&tickets, ticket);

	return last && last->closed_ns && now - last->closed_ns < INBOUND_STRAY_NS;
}

/*
 * TCP_CLOSE of a server's socket that was judged. A function of its own for its stack. What is there of a SYN is of a newer one and stays: it may be what ended
 * this connection, of which its client knew no more, and is sent again at once. On a kernel before 6.12 connect() takes ports whose connection waits for the server's FIN.
 */
__noinline int inbound_closed(const struct mesh_event *event)
{
	struct mesh_admission admission = {}, *last;
	struct mesh_ticket ticket = {};
	__u64 before;

	if (!event) /* never, but the verifier cannot know */
		return 0;
	ticket.client_port = event->peer_port;
	ticket.server_port = event->local_port;
	admission.closed_ns = bpf_ktime_get_ns();
	__builtin_memcpy(ticket.client_addr, event->peer_addr, sizeof(ticket.client_addr));
	__builtin_memcpy(ticket.server_addr, event->local_addr, sizeof(ticket.server_addr));
	if (!bpf_map_update_elem(&tickets, &ticket, &admission, BPF_NOEXIST))
		return 0;
	last = bpf_map_lookup_elem(&tickets, &ticket);
	before = last ? last->closed_ns : 0;
	/* Swapped: meanwhile this place may be another ticket's. */
	if (before)
		__sync_val_compare_and_swap(&last->closed_ns, before, admission.closed_ns);
	return 0;
}

static __always_inline void inbound_refuse(const struct mesh_ticket *ticket, struct mesh_decision *decision, __u64 start)
{
	struct mesh_event event = {
		.role = MESH_SERVER,
		.reason = MESH_DENIED,
		.local_port = ticket->server_port,
		.peer_port = ticket->client_port,
		.flags = REFUSE_FLAGS,
		/* There is no socket; with the time it names the refusal. */
		.cookie = (__u64)bpf_get_prandom_u32() << 32 | bpf_get_prandom_u32(),
		.start_ns = start,
		.event_ns = start + decision->decision_ns,
	};

	__builtin_memcpy(event.local_addr, ticket->server_addr, sizeof(event.local_addr));
	__builtin_memcpy(event.peer_addr, ticket->client_addr, sizeof(event.peer_addr));
	refuse_tell(&event, decision);
}

/* Leaves word for the socket that will be. */
static __always_inline void inbound_admit(const struct mesh_ticket *ticket, const struct mesh_decision *decision, __u32 source)
{
	struct mesh_admission admission = {
		.source = source,
		.destination = decision->destination,
		.policy_set = decision->policy_set,
		.rule = decision->rule,
		.dry_rule = decision->dry_rule,
		.verdict = decision->verdict,
		.dry_verdict = decision->dry_verdict,
	};

	bpf_map_update_elem(&tickets, ticket, &admission, BPF_ANY);
}

/* PASSIVE_ESTABLISHED_CB: what was said of the SYN stays with the socket, for its line, and for who revokes it. */
static __always_inline struct mesh_decided *inbound_admitted(const bool in_mesh, struct mesh_connection *conn)
{
	struct mesh_ticket ticket = {.client_port = conn->event.peer_port, .server_port = conn->event.local_port};
	struct mesh_admission *admission;
	struct mesh_decided *d;

	if (!in_mesh || !(mesh_has & MESH_HAS_POLICIES))
		return NULL;
	__builtin_memcpy(ticket.client_addr, conn->event.peer_addr, sizeof(ticket.client_addr));
	__builtin_memcpy(ticket.server_addr, conn->event.local_addr, sizeof(ticket.server_addr));
	admission = bpf_map_lookup_elem(&tickets, &ticket);
	if (!admission || admission->closed_ns)
		return NULL;
	d = admission->destination ? decided_room(conn) : NULL;
	if (d) {
		d->source = admission->source;
		d->decision.destination = admission->destination;
		d->decision.policy_set = admission->policy_set;
		d->decision.rule = admission->rule;
		d->decision.dry_rule = admission->dry_rule;
		d->decision.verdict = admission->verdict;
		d->decision.dry_verdict = admission->dry_verdict;
		d->decision.original_port = conn->event.local_port;
		__builtin_memcpy(d->decision.original_addr, conn->event.local_addr, sizeof(d->decision.original_addr));
		conn->event.flags |= MESH_DECIDED;
	}
	bpf_map_delete_elem(&tickets, &ticket);
	return d;
}

/* The cookie of the network namespace that this program is loaded for: it has no other way to know. Set at load. */
const volatile __u64 lookup_netns = 0;

static __always_inline int inbound_judge(struct bpf_sk_lookup *ctx)
{
	struct mesh_ticket ticket = {};
	struct mesh_decision decision = {};
	struct policy_question question = {.address_known = true};
	struct mesh_workload *workload;
	struct mesh_address server;
	__u64 start;
	__u32 index;

	inbound_ends(ctx, &ticket);
	__builtin_memcpy(server.addr, ticket.server_addr, sizeof(server.addr));
	index = identity_of_address(&server);
	if (!index)
		index = listener_find(lookup_netns, &server, ticket.server_port, true);
	workload = bpf_map_lookup_elem(&workloads, &index);
	if (!index || !workload)
		return SK_PASS;
	question.set = *(volatile __u32 *)&workload->policy_set;
	if (!question.set)
		return SK_PASS;
	start = bpf_ktime_get_ns();
	question.port = ticket.server_port;
	question.source = inbound_source(&ticket);
	__builtin_memcpy(question.address.addr, ticket.client_addr, sizeof(question.address.addr));
	policy_decide(&decision, &question, true);
	decision.destination = index;
	if (!policy_denies(&decision)) {
		inbound_admit(&ticket, &decision, question.source);
		return SK_PASS;
	}
	if (inbound_is_stray(&ticket, start)) {
		account_add(strays);
		return SK_DROP;
	}
	bpf_map_delete_elem(&tickets, &ticket);
	__builtin_memcpy(decision.original_addr, ticket.server_addr, sizeof(decision.original_addr));
	decision.original_port = ticket.server_port;
	decision.decision_ns = bpf_ktime_get_ns() - start;
	inbound_refuse(&ticket, &decision, start);
	return SK_DROP;
}

#endif
