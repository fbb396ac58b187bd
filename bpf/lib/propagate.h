/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The trace of a connection, told to its other end: an option on the SYN (RFC 6994) with the trace id by which the client's end is known. Where nothing
 * between the ends changes addresses or sequence numbers the server comes to the same id without it; behind a NAT it does not.
 *
 * Both ends do it only with peers in `trace_blocks`: some middleboxes drop a SYN whose options they do not know, and an id is taken from nobody else.
 */
#ifndef SIDELIGHT_PROPAGATE_H
#define SIDELIGHT_PROPAGATE_H

#include "account.h"
#include "bits.h"
#include "callbacks.h"

/*
 * Whether any of this is done. Set at load. The programs of sockops that do it are others than those that do not: to ask this would cost those 5 % of their
 * instructions (63 of 1,295 a connection).
 */
const volatile bool trace_option = false;

#define TRACE_OPTION_KIND 254 /* experimental, RFC 4727 */
#define TRACE_OPTION_EXID 0x534c /* ours, as RFC 6994 wants one; not in IANA's registry when it was chosen */

/*
 * As on the wire. A SYN has room for 40 bytes of options, and the kernel's own (MSS, SACK permitted with timestamps, window scale) take 20: this is all
 * that is left.
 */
struct trace_option {
	__u8 kind;
	__u8 length;
	__be16 exid;
	__u32 id[4]; /* the trace id as it is written, in four pieces: it is aligned to no more */
};

_Static_assert(sizeof(struct trace_option) == 20, "trace_option");

static __always_inline __u64 trace_mix(__u64 h)
{
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdULL;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ULL;
	return h ^ h >> 33;
}

static __always_inline __u64 trace_left(__u64 k)
{
	return bits_rotate(k * 0x87c37b91114253d5ULL, 31) * 0x4cf5ad432745937fULL;
}

static __always_inline __u64 trace_right(__u64 k)
{
	return bits_rotate(k * 0x4cf5ad432745937fULL, 33) * 0x87c37b91114253d5ULL;
}

/*
 * The id by which user space knows a client's end: MurmurHash3 (x64, 128 bits, seed 0) of the client's address, the server's, the client's port, the server's,
 * and the client's initial sequence number, in network byte order; its two halves in the same. agent/connection/trace.go does it again.
 */
static __always_inline void trace_id(const struct mesh_event *client, __u32 *id)
{
	const __u64 *from = (const __u64 *)client->local_addr, *to = (const __u64 *)client->peer_addr;
	__u64 a = 0, b = 0;

	a = (bits_rotate(a ^ trace_left(from[0]), 27) + b) * 5 + 0x52dce729;
	b = (bits_rotate(b ^ trace_right(from[1]), 31) + a) * 5 + 0x38495ab5;
	a = (bits_rotate(a ^ trace_left(to[0]), 27) + b) * 5 + 0x52dce729;
	b = (bits_rotate(b ^ trace_right(to[1]), 31) + a) * 5 + 0x38495ab5;
	a ^= trace_left(bpf_htons(client->local_port) | (__u64)bpf_htons(client->peer_port) << 16 |
			(__u64)bpf_htonl(client->client_isn) << 32);
	a ^= 40; /* bytes */
	b ^= 40;
	a += b;
	b += a;
	a = trace_mix(a);
	b = trace_mix(b);
	a += b;
	b += a;
	id[0] = bpf_htonl(a >> 32);
	id[1] = bpf_htonl(a);
	id[2] = bpf_htonl(b >> 32);
	id[3] = bpf_htonl(b);
}

static __always_inline bool trace_with(const __u8 *peer)
{
	struct mesh_trace_block key = {.prefix_bits = 128};
	const __u32 *from = (const __u32 *)peer;
	__u32 *to = (__u32 *)key.addr, *on;

	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	to[3] = from[3];
	on = bpf_map_lookup_elem(&trace_blocks, &key);
	return on && *on;
}

/* BPF_SOCK_OPS_TCP_CONNECT_CB: asks for the two callbacks that write the option. */
static __always_inline void trace_begin(struct bpf_sock_ops *ctx, struct mesh_connection *conn)
{
	if (!trace_with(conn->event.peer_addr))
		return;
	conn->event.flags |= MESH_TRACE_DUE;
	callbacks_set(ctx, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
}

/* Of a SYN that answers nothing. */
static __always_inline bool trace_is_syn(struct bpf_sock_ops *ctx)
{
	return (ctx->skb_tcp_flags & (TCP_FLAG_SYN_BIT | TCP_FLAG_ACK_BIT)) == TCP_FLAG_SYN_BIT;
}

/*
 * The connection whose SYN it is, if that is to carry the option. The callbacks alone do not say so: they come too when another program has asked for them, or
 * for a connection that the socket tried before, to somebody else.
 */
static __always_inline struct mesh_connection *trace_due(struct bpf_sock *sk)
{
	struct mesh_connection *conn = bpf_sk_storage_get(&connections, sk, NULL, 0);

	return conn && conn->phase == MESH_CONNECTING && conn->event.flags & MESH_TRACE_DUE ? conn : NULL;
}

/*
 * BPF_SOCK_OPS_HDR_OPT_LEN_CB of a SYN. It comes again for each that is sent again, of which the first carries the option too and the others do not: something on the way
 * may drop SYNs because of it. total_retrans is raised before the segment is built.
 */
static __always_inline void trace_reserve(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_connection *conn;
	struct tcp_sock *tp;

	if (!sk)
		return;
	conn = trace_due(sk);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!conn || !tp)
		return;
	if (tp->total_retrans < 2 && !bpf_reserve_hdr_opt(ctx, sizeof(struct trace_option), 0))
		conn->event.flags |= MESH_TRACE_ROOM;
	else
		conn->event.flags &= ~MESH_TRACE_ROOM;
}

/* BPF_SOCK_OPS_WRITE_HDR_OPT_CB: of a SYN that we have room in, or of a segment that another program has, whose room is its own. */
static __always_inline void trace_write(struct bpf_sock_ops *ctx)
{
	struct trace_option option = {TRACE_OPTION_KIND, sizeof(option), bpf_htons(TRACE_OPTION_EXID), {}};
	struct bpf_sock *sk = ctx->sk;
	struct mesh_connection *conn;

	if (!sk || !trace_is_syn(ctx))
		return;
	conn = trace_due(sk);
	if (!conn || !(conn->event.flags & MESH_TRACE_ROOM))
		return;
	trace_id(&conn->event, option.id);
	if (bpf_store_hdr_opt(ctx, &option, sizeof(option), 0) || conn->event.flags & MESH_TRACE_TOLD)
		return;
	conn->event.flags |= MESH_TRACE_TOLD;
	account_add(trace_options[MESH_TRACE_SENT]);
}

/*
 * The handshake is done, or the connect has failed: nothing more is to be written. The callback comes with each segment for as long as it is asked for, and is left to a
 * later connection of the socket, and to what it accepts if it listens later; who did not ask leaves it alone, as another program may have. Where no SYN had room
 * the kernel may not even have asked us.
 */
static __always_inline void trace_end(struct bpf_sock_ops *ctx, struct mesh_connection *conn, bool open)
{
	if (!(conn->event.flags & MESH_TRACE_DUE))
		return;
	conn->event.flags &= ~MESH_TRACE_DUE;
	if (!(conn->event.flags & MESH_TRACE_TOLD))
		account_add(trace_options[MESH_TRACE_NO_ROOM]);
	if (!open || !first_bytes)
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
}

/*
 * BPF_SOCK_OPS_TCP_LISTEN_CB, and the iterator for those that listened before: has the kernel keep the headers of a SYN until its socket is accepted, about 100 bytes of
 * memory for as long as that lives. What the program itself asked for stays.
 */
static __always_inline void trace_listen(void *sk)
{
	int keep = 0;

	if (!bpf_getsockopt(sk, SOL_TCP, TCP_SAVE_SYN, &keep, sizeof(keep)) && keep)
		return;
	keep = 1;
	bpf_setsockopt(sk, SOL_TCP, TCP_SAVE_SYN, &keep, sizeof(keep));
}

/* BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB of an accepted socket: takes the id from the SYN. A cookie (tcp_syncookies) has kept none. */
static __always_inline void trace_read(struct bpf_sock_ops *ctx, struct mesh_connection *conn)
{
	/* What is looked for: the first four bytes, with the length of what it is known by. */
	struct trace_option option = {TRACE_OPTION_KIND, 4, bpf_htons(TRACE_OPTION_EXID), {}};

	if (!trace_with(conn->event.peer_addr))
		return;
	if (bpf_load_hdr_opt(ctx, &option, sizeof(option), BPF_LOAD_HDR_OPT_TCP_SYN) != sizeof(option) ||
	    !(option.id[0] | option.id[1] | option.id[2] | option.id[3])) { /* W3C: that is none */
		account_add(trace_options[MESH_TRACE_MISSING]);
		return;
	}
	account_add(trace_options[MESH_TRACE_RECEIVED]);
	conn->event.flags |= MESH_TRACE_TOLD;
	conn->event.connect_ns = option.id[0] | (__u64)option.id[1] << 32;
	conn->event.owner.reserved = option.id[2];
	conn->event.client_isn = option.id[3];
}

#endif
