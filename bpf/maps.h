/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every map: why it exists, who writes, who deletes, why this size. */
#ifndef SIDELIGHT_MAPS_H
#define SIDELIGHT_MAPS_H

#include "abi.h"

/* How far a connection has come. A socket can go through this more than once: connect() after a failed connect() is legal. */
enum mesh_phase {
	MESH_IDLE, /* a listener, or nothing yet */
	MESH_CALLED, /* connect() was called */
	MESH_CONNECTING, /* SYN is out */
	MESH_OPEN, /* handshake done */
	MESH_CLOSED, /* its MESH_CLOSE was counted */
};

/*
 * What reported_* is once the close has told all. No total comes near it, not even one that a sweep read a little wrong, on either
 * side of zero.
 */
#define MESH_REPORTED_ALL (1ULL << 63)
#define MESH_REPORTED_ALL_32 (1U << 31)

/*
 * The state of one socket. It is the next event, nearly complete, so that sending one is a copy. A listener's holds its owner
 * only; BPF_F_CLONE hands that to each accepted socket.
 */
struct mesh_connection {
	struct mesh_event event;
	__u32 told; /* enum mesh_told; changed by atomics only */
	/*
	 * SYN or SYN-ACK, known when the handshake is done. 8 bits: a client's are bounded by tcp_syn_retries and tcp_syn_linear_timeouts, of
	 * at most 127 each, and a server's the kernel counts in 8 bits (num_retrans of struct request_sock).
	 */
	__u8 syn_retransmits;
	__u8 phase; /* enum mesh_phase */
	__u8 looks; /* at segments that left, for the first bytes */
	__u8 traced; /* mesh_state sees the end, not mesh_sockops */
	/* What user space has in its sums; changed by atomics only, because the sweep does not lock the socket. */
	__u64 reported_sent_bytes;
	__u64 reported_received_bytes;
	__u32 reported_retransmits;
	__u32 reported_syn_retransmits;
	__u64 first_sent_ns;
	__u64 first_received_ns;
	__u32 fin_data_segs; /* data_segs_in when our FIN was sent, plus 1; 0: it was not, or not seen */
	__u32 fin_received; /* bytes_received then */
};

/* With what the kernel puts before it (struct bpf_local_storage_elem) 256 bytes, which is what it allocates: 8 more would take 512. */
_Static_assert(sizeof(struct mesh_connection) <= 184, "mesh_connection");

/*
 * Purpose: the state above. Writer: all programs. Deleter: the kernel, when the socket is freed.
 * Size: one value per live socket, charged to the socket's own option memory, so there is no limit to set and none that another
 * socket could exhaust; a socket whose own process used that memory up has no state, which is counted as storage_failed, and is
 * told by its end only.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct mesh_connection);
} connections SEC(".maps");

/*
 * Purpose: events to user space. Writer: mesh_sockops, mesh_state. Deleter: user space, by reading. Size: set at load; the default
 * of 4 MiB holds about 30,000 events, or 6,000 loopback connections that user space has not yet read, and it reads every 50 ms.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} events SEC(".maps");

/*
 * Purpose: the kernel's side of the account. Writer: mesh_sockops, mesh_adopt, mesh_state, each on its own CPU. Deleter: nobody.
 * Size: one struct, so that an event pays for one look-up.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mesh_account);
} account SEC(".maps");

/*
 * Purpose: sums of connections whose MESH_CLOSE found no room in the ring, or was not asked for. Writer: mesh_sockops, mesh_state.
 * Deleter: nobody: user space takes the difference to what it read last, because a value that is deleted can still be added to by a program that holds it. Size: edges,
 * by peer address, that lose events in the life of the agent; what comes later goes to lost_totals.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct mesh_lost_key);
	__type(value, struct mesh_lost);
} lost SEC(".maps");

/*
 * Purpose: the same sums by role and reason only, for what finds no room in `lost`. Writer: as of `lost`. Deleter: nobody.
 * Size: one for each role and reason.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MESH_ROLE_COUNT *MESH_REASON_COUNT);
	__type(key, __u32);
	__type(value, struct mesh_lost);
} lost_totals SEC(".maps");

#endif
