/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Everything that crosses from the kernel to Go, and nothing else. bpf2go turns these types into the Go ones of package bpf;
 * agent/event reads them by fixed offsets and a test there holds the offsets against the generated types.
 *
 * No struct is packed, every padding byte has a name: a record is copied whole, and unnamed padding would carry stale kernel bytes.
 */
#ifndef SIDELIGHT_ABI_H
#define SIDELIGHT_ABI_H

#include <linux/types.h>

/* Raised by every change of a layout below. */
#define MESH_ABI_VERSION 4

#pragma clang diagnostic push
#pragma clang diagnostic error "-Wpadded"

enum mesh_kind {
	MESH_KIND_NONE,
	MESH_PRE_CONNECT, /* SYN about to leave */
	MESH_ESTABLISHED, /* handshake done; totals not yet worth sending */
	MESH_CLOSE, /* the socket reached TCP_CLOSE, from whatever state; struct mesh_close_event */
	MESH_SWEEP, /* a live socket, seen by the iterator; struct mesh_close_event. Never in the ring */
	MESH_KIND_COUNT,
};

enum mesh_role {
	MESH_ROLE_NONE,
	MESH_CLIENT, /* this socket connected */
	MESH_SERVER, /* this socket was accepted */
	MESH_ROLE_COUNT,
};

/*
 * Why a connection ended or failed: one list for log, metric and span (agent/connection has the names).
 * Only at the end may a value be added: recorded event streams hold the numbers.
 */
enum mesh_reason {
	MESH_OK,
	MESH_REFUSED,
	MESH_RESET_BY_PEER,
	MESH_RESET_BY_LOCAL,
	MESH_TIMEOUT,
	MESH_UNREACHABLE,
	MESH_DENIED,
	MESH_CIRCUIT_OPEN,
	MESH_RATE_LIMITED,
	MESH_NO_ENDPOINT,
	MESH_OTHER,
	MESH_UNKNOWN_LOST,
	MESH_ABORTED, /* closed by its own process before the handshake was done */
	MESH_REASON_COUNT,
};

/*
 * What user space has been told of a connection. The kernel keeps it with the socket, so that each step is counted once, by
 * whichever event is the first to get through.
 */
enum mesh_told {
	MESH_TOLD_ATTEMPT = 1,
	MESH_TOLD_ESTABLISHED = 2,
	MESH_TOLD_END = 4,
};

/* What is special about a connection. */
enum mesh_flags {
	MESH_ADOPTED = 1, /* it began before we did: start_ns is when it was adopted */
	MESH_ADOPTED_OPEN = 2, /* and it was open already: it counts as adopted, neither as attempt nor as established */
	MESH_STATELESS = 4, /* no room for its state: only its end is told, and start_ns is that */
};

/* The process that called connect() or listen(); of an adopted one, a process that had it open. All zero when it is not known. */
struct mesh_owner {
	__u64 start_boottime_ns; /* of the thread group leader; with pid it names a process for good */
	__u32 pid; /* thread group id in the initial pid namespace */
	__u32 reserved;
	char comm[16]; /* of the thread group leader; not always NUL-terminated when copied while it changes */
};

/*
 * What every event carries: all that was known of the connection when it was sent, so that a later event makes up for a lost
 * one. Times are CLOCK_MONOTONIC; 0 means "did not happen".
 */
struct mesh_event {
	__u8 kind; /* enum mesh_kind */
	__u8 role; /* enum mesh_role */
	__u8 reason; /* enum mesh_reason; of a MESH_CLOSE only */
	__u8 old_state; /* TCP state that MESH_CLOSE came from */
	__u16 local_port; /* host byte order */
	__u16 peer_port; /* host byte order */
	__u64 cookie; /* socket cookie: unique per boot, but a socket may connect more than once */
	__u64 start_ns; /* connect() was called, or the accepted socket was born; with cookie the key of a connection */
	__u64 connect_ns; /* SYN about to leave; clients only */
	__u64 established_ns;
	__u8 local_addr[16]; /* IPv4 as ::ffff:a.b.c.d, whatever the socket's family */
	__u8 peer_addr[16];
	__u64 cgroup_id; /* cgroup v2 of the socket, which the process cannot change after socket() */
	struct mesh_owner owner;
	__u32 client_isn; /* the client's initial sequence number: both ends know it, so both can name the connection alike */
	__u16 told; /* enum mesh_told, before this event */
	__u16 flags; /* enum mesh_flags */
	__u64 event_ns;
};

/*
 * MESH_CLOSE and MESH_SWEEP: the totals are payload only, each byte once: no SYN, no FIN, no retransmission. Exact at MESH_CLOSE; a
 * MESH_SWEEP reads them without the socket's lock, and what it reads too much or too little the next report makes up for: sums
 * take the difference to what was reported, modulo the width of the field.
 */
struct mesh_close_event {
	struct mesh_event event;
	__u64 reported_sent_bytes; /* before this event */
	__u64 reported_received_bytes;
	__u32 reported_retransmits;
	__u32 reported_syn_retransmits;
	__u64 sent_bytes;
	__u64 received_bytes;
	__u64 first_sent_ns; /* the first byte of payload left; 0: none did, or it was not seen */
	__u64 first_received_ns; /* the first byte of payload was here when a segment left for the peer: mostly its acknowledgement */
	__u32 retransmits; /* segments, SYN among them */
	__u32 syn_retransmits; /* of these, during the handshake */
	__u32 srtt_us; /* 0: never measured */
	__u32 min_rtt_us; /* ~0: never measured */
	__u32 sk_err; /* positive errno that the kernel left in the socket */
	__u32 reserved;
};

/* Whose sums a lost MESH_CLOSE goes to: the facts that an edge is made of. */
struct mesh_lost_key {
	__u64 cgroup_id;
	__u8 peer_addr[16];
	__u8 role; /* enum mesh_role */
	__u8 reason; /* enum mesh_reason */
	__u8 reserved[6];
};

/* What lost MESH_CLOSE events would have added to an edge. The gauges go down only: by what was told before. */
struct mesh_lost {
	__u64 attempts;
	__u64 established;
	__u64 adopted;
	__u64 failed;
	__u64 closed;
	__u64 connecting_down;
	__u64 open_down;
	__u64 sent_bytes;
	__u64 received_bytes;
	__u64 retransmits;
	__u64 syn_retransmits;
};

/* The kernel's side of the account, one per CPU; each field only grows. */
struct mesh_account {
	__u64 attempts; /* SYN about to leave, or waiting for its answer when it was adopted */
	__u64 established[MESH_ROLE_COUNT];
	__u64 adopted[MESH_ROLE_COUNT]; /* open when we came */
	__u64 failed; /* clients that reached TCP_CLOSE without a handshake */
	__u64 closed[MESH_ROLE_COUNT]; /* reached TCP_CLOSE after a handshake */
	__u64 submitted[MESH_KIND_COUNT];
	__u64 reserve_failed[MESH_KIND_COUNT]; /* no room in the ring */
	__u64 sampled_out[MESH_KIND_COUNT]; /* not asked for: `silent` */
	__u64 storage_failed[MESH_ROLE_COUNT]; /* no per-socket state: only the end is told */
	__u64 stateless_established; /* those of them, and of `established`, that got through the handshake */
	__u64 adopted_connecting; /* those of `attempts` that were under way when we came */
	__u64 adopt_failed; /* open when we came, and not adopted for want of per-socket state */
	__u64 traced; /* adopted, with an end that only mesh_state sees */
	__u64 traced_closed; /* those of them that ended */
	__u64 untracked_closed; /* closed without state: it began before we did and was not adopted */
	__u64 aggregated; /* MESH_CLOSE without room in the ring, or sampled out, that went into `lost` */
	__u64 totalled; /* the same where `lost` was full too: they went into `lost_totals` */
};

#pragma clang diagnostic pop

_Static_assert(sizeof(struct mesh_owner) == 32, "mesh_owner");
_Static_assert(sizeof(struct mesh_event) == 128, "mesh_event");
_Static_assert(sizeof(struct mesh_close_event) == 208, "mesh_close_event");
_Static_assert(sizeof(struct mesh_lost_key) == 32, "mesh_lost_key");
_Static_assert(sizeof(struct mesh_lost) == 88, "mesh_lost");
_Static_assert(sizeof(struct mesh_account) == 8 * (1 + 3 + 3 + 1 + 3 + 5 + 5 + 5 + 3 + 8), "mesh_account");

#endif
