/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Everything that crosses from the kernel to Go, and nothing else. bpf2go turns these types into the Go ones of package bpf;
 * agent/event reads records by the offsets that those have.
 *
 * No struct is packed, every padding byte has a name: a record is copied whole, and unnamed padding would carry stale kernel bytes.
 */
#ifndef SIDELIGHT_ABI_H
#define SIDELIGHT_ABI_H

#include <linux/types.h>

/*
 * A test of upgrades wants a program whose maps are of another layout. bpf.go has a second object made for it, with MESH_OTHER_LAYOUT, where nearly every
 * struct has its fields in other places. Records have the size that they have: the stack of programs has no room for more.
 */
#ifdef MESH_OTHER_LAYOUT
#define MESH_ORDINARY(...)
#define MESH_OTHER(...) __VA_ARGS__
/* That of no release. */
#define MESH_ABI_VERSION 999
#else
#define MESH_ORDINARY(...) __VA_ARGS__
#define MESH_OTHER(...)
/* Raised by every change of a layout below. */
#define MESH_ABI_VERSION 6
#endif

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
	MESH_DECIDED = 8, /* the mesh had a say: the event is followed by a struct mesh_decision */
	MESH_REFUSED_HERE = 16, /* the mesh refused it: no SYN left, or none was let in */
	MESH_REVOKED = 32, /* policies allowed it and do so no more: it was cut */
	/*
	 * Its trace id was in the SYN. A client wrote it there; a server found it, and has it in the bytes of connect_ns, owner.reserved and client_isn, one after the
	 * other, which are of no other use to a server then: so a connection's state stays as small as it is.
	 */
	MESH_TRACE_TOLD = 64,
	/* Of a client's state, and of no meaning to user space: its SYN is to carry the id, and the segment that is being built has room for it. */
	MESH_TRACE_DUE = 128,
	MESH_TRACE_ROOM = 256,
};

/* What became of trace ids in options of TCP: lib/propagate.h. */
enum mesh_trace_outcome {
	MESH_TRACE_SENT, /* in the SYN of a client */
	MESH_TRACE_NO_ROOM, /* beside the SYN's other options */
	MESH_TRACE_RECEIVED, /* by an accepted socket */
	MESH_TRACE_MISSING, /* from a peer that may send it: it has no agent, or something took the option out */
	MESH_TRACE_OUTCOME_COUNT,
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
	MESH_OTHER(__u64 event_ns;)
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
	MESH_ORDINARY(__u64 event_ns;)
};

/*
 * MESH_CLOSE and MESH_SWEEP: the totals are payload only, each byte once: no SYN, no FIN, no retransmission. Exact at MESH_CLOSE; a
 * MESH_SWEEP reads them without the socket's lock, and what it reads too much or too little the next report makes up for: sums
 * take the difference to what was reported, modulo the width of the field.
 */
struct mesh_close_event {
	struct mesh_event event;
	MESH_OTHER(__u32 sk_err; __u32 reserved;)
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
	MESH_ORDINARY(__u32 sk_err; __u32 reserved;) /* positive errno that the kernel left in the socket */
};

/* What the mesh decided of a connection, and what by. */
struct mesh_decision {
	MESH_OTHER(__u64 generation;)
	__u8 original_addr[16]; /* dialled, before rewriting */
	__u16 original_port; /* host byte order */
	__u8 verdict; /* enum mesh_verdict */
	__u8 dry_verdict; /* what dry-run policies would have said */
	__u32 service; /* id; 0: none was dialled */
	__u32 backend; /* index into `backends`; 0: none */
	__u32 backend_tag; /* of it then: an index is used again */
	__u32 destination; /* index into `workloads`: who is at the other end, or of a server at this one; 0: nobody we know */
	__u32 policy_set; /* 0: none for the destination */
	__u16 rule; /* bit of the set that decided; MESH_NO_RULE: none did */
	__u16 dry_rule;
	__u32 limit; /* of a refusal by limit: index into `limits` */
	__u32 limit_value; /* and what stood against it then: its bound */
	__u32 decision_ns; /* spent deciding */
	/* Of the configuration that decided: of the service's table, or without a service of the policies. */
	MESH_ORDINARY(__u64 generation;)
};

enum mesh_verdict {
	MESH_VERDICT_NONE, /* no policy is about it */
	MESH_VERDICT_ALLOW,
	MESH_VERDICT_DENY,
	MESH_VERDICT_UNATTENDED, /* denied, because there has been no agent for longer than is allowed */
	MESH_VERDICT_COUNT,
};

#define MESH_NO_RULE 0xffff

/* Whose sums a lost MESH_CLOSE goes to: the facts that an edge is made of. */
struct mesh_lost_key {
	MESH_OTHER(__u64 other;)
	__u64 cgroup_id;
	__u8 peer_addr[16];
	__u8 role; /* enum mesh_role */
	__u8 reason; /* enum mesh_reason */
	__u8 refused; /* by the mesh */
	__u8 reserved;
	__u32 service; /* id; 0: none */
	__u32 destination; /* index into `workloads`; 0: nobody we know */
	__u32 reserved2;
};

/* What lost MESH_CLOSE events would have added to an edge. The gauges go down only: by what was told before. */
struct mesh_lost {
	MESH_OTHER(__u64 other;)
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
	MESH_OTHER(__u64 other;)
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
	__u64 listeners_failed; /* listeners of workloads that could not be noted: nobody judges who connects to them by that */
	__u64 refused[MESH_ROLE_COUNT]; /* by the mesh; of clients they are in `attempts` and in `failed` too */
	__u64 strays; /* packets to a listener that were left over from a connection that had just ended, and dropped */
	__u64 trace_options[MESH_TRACE_OUTCOME_COUNT]; /* of connections with peers in `trace_blocks` */
};

/*
 * The mesh as the kernel reads it. Written by user space only (agent/maps), but for what is said to count. What a connection is decided by never
 * changes under it: tables, backends and policy sets are written before anything refers to them, references are single aligned words, and
 * an index is used again only after all programs that could hold it have ended.
 */

/* The address that is dialled. */
struct mesh_frontend {
	__u8 addr[16];
	__u16 port; /* host byte order; 0: all that have no frontend of their own */
	__u16 reserved;
};

/* How a backend is chosen: enum mesh_table.algorithm. */
enum mesh_algorithm {
	MESH_RANDOM, /* slots are pairs, of an alias table: {threshold << 32 | backend}, {backend} */
	MESH_ROUND_ROBIN, /* slots are an order */
	MESH_LEAST_CONNECTIONS, /* slots as of MESH_RANDOM */
	MESH_MAGLEV, /* slots are a Maglev table */
};

/* What one port of a service leads to, in one family, in one generation. */
struct mesh_table {
	MESH_OTHER(__u64 other;)
	__u64 generation;
	__u32 service; /* id */
	__u32 algorithm; /* enum mesh_algorithm */
	__u32 first_slot; /* index into `slots` */
	__u32 size; /* choices, of which each has one slot or two; 0: no endpoint */
	__u32 limit; /* index into `limits`; 0: none */
	__u32 pool; /* the index into `pools` that leads here */
	/* Not for programs, as are `name` and `class` below: agents know again by these what one before them left. */
	__u64 name; /* hash of the service's */
	__u32 port; /* host byte order; 0: any */
	__u32 ipv6;
};

/* Where a connection can go. */
struct mesh_backend {
	MESH_OTHER(__u64 other;)
	__u8 addr[16];
	__u16 port; /* host byte order; 0: as dialled */
	__u16 reserved;
	__u32 tag; /* distinguishes the users of an index, one after the other */
	__u32 workload; /* index into `workloads`; 0: none */
	__u32 weight;
	__u32 service; /* id of whose it is; 0: nobody's, the index is free */
	__u32 reserved2;
	__u64 name; /* hash of the endpoint's */
};

/* What the kernel counts of a backend: written by programs only. */
struct mesh_load {
	MESH_OTHER(__u64 other;)
	__u64 open; /* open or connecting */
	__u64 picks;
	__u64 failed; /* connects that failed */
	__u64 reserved;
};

/* Somebody with an identity. */
struct mesh_workload {
	MESH_OTHER(__u64 other;)
	__u32 policy_set; /* index into `policy_sets`: who may connect to it; 0: everybody */
	__u32 source; /* class of identity and namespace, as in `policy_sources`; 0: neither is known */
	__u32 limit; /* index into `limits`, of the connections that it opens; 0: none */
	__u32 affinity; /* hash of its address */
	__u32 flags; /* enum mesh_workload_flags */
	__u32 reserved;
	__u64 name; /* hash of it */
	__u64 class; /* hash of what `source` stands for */
};

enum mesh_workload_flags {
	MESH_WORKLOAD_BYPASS = 1, /* its connections are left alone */
};

struct mesh_limit {
	MESH_OTHER(__u64 other;)
	__u32 max_open; /* 0: no limit */
	__u32 max_connecting;
	__u32 per_second;
	__u32 burst;
};

/* Rules of policies are bits. A connection matches those that are in all three of: its source's, its address's and its port's. */
#define MESH_RULE_WORDS 4

struct mesh_rules {
	__u64 words[MESH_RULE_WORDS];
};

struct mesh_policy_set {
	MESH_OTHER(__u64 other;)
	__u64 generation;
	struct mesh_rules deny;
	struct mesh_rules allow;
	struct mesh_rules dry_deny;
	struct mesh_rules dry_allow;
	struct mesh_rules blocks; /* those that ask for an address: who connects has none yet, unless it is bound */
	__u32 has_allow; /* what no rule of `allow` matches is denied */
	__u32 has_dry_allow;
};

/* A class of sources in a set; class MESH_SOURCE_OTHER has the rules of all that have no entry. */
struct mesh_policy_source {
	__u32 set;
	__u32 source;
};

#define MESH_SOURCE_OTHER 0xffffffff

/* A key of a longest-prefix match: the set, then the address. Each set has an entry for its 32 bits alone. */
struct mesh_policy_block {
	__u32 prefix_bits; /* 32 and those of the address */
	__u32 set;
	__u8 addr[16];
};

/* A key of a longest-prefix match: peers to exchange trace ids with. */
struct mesh_trace_block {
	__u32 prefix_bits; /* of the address */
	__u8 addr[16];
};

/* A port in a set; port 0 has the rules of all that have no entry. */
struct mesh_policy_port {
	__u32 set;
	__u32 port;
};

/* Verdicts are counted by this. */
struct mesh_verdict_key {
	MESH_OTHER(__u64 other;)
	__u32 policy_set;
	__u16 rule;
	__u8 verdict;
	__u8 dry; /* of dry-run policies */
};

/* What the kernel counts of a limit. */
struct mesh_limit_counts {
	__u64 open;
	__u64 connecting;
	__u64 rejected_open;
	__u64 rejected_connecting;
	__u64 rejected_rate;
};

/*
 * What agents leave each other, one after the other: how far the ring was read, and what had been read by then. Written by user space only, each of the two
 * pairs by writing the half that is not in force and then the number, whose lowest bit says which half is: whoever is killed in between leaves the
 * other one.
 */
struct mesh_counted {
	__u64 position; /* in the ring: records before it are in the sums */
	__u64 received;
	__u64 decode_failed;
	__u64 decoded[MESH_KIND_COUNT]; /* by kind, those of sweeps too */
};

struct mesh_logged {
	__u64 position; /* in the ring: connections that ended before it have their lines */
	__u64 device; /* of the access log's file then; 0: it is none */
	__u64 inode;
	__u64 size; /* of that file then */
};

struct mesh_ledger {
	MESH_OTHER(__u64 other;)
	__u64 counted_number;
	struct mesh_counted counted[2];
	__u64 logged_number;
	struct mesh_logged logged[2];
	__u64 agents; /* how many there were, this one included */
	__u64 agent_pid; /* of the last, in its PID namespace */
	__u64 stopped; /* it ended by itself */
	__u64 handed; /* position in the ring: what it read before it is exported, if it ended by itself */
	__u64 generation; /* of the mesh that it put in force last, or was about to */
	__u64 ring_base; /* the position at which the oldest ring that there is began */
	__u64 next_base; /* what that is to be when the oldest is gone; 0: it stays */
	__u64 next_rings; /* how many there are before the one that is written to, as long as it is not */
	__u64 mixed; /* programs may write to a ring that is not the newest */
	__u64 alone_ns; /* for how long there was none, in all */
	__u64 data_path; /* what agents know it by; 0: the id of this map */
	__u8 version[64]; /* its version */
};

/* How long the programs have been alone. Written by user space only. */
struct mesh_watchdog {
	MESH_OTHER(__u64 other;)
	__u64 alive_ns; /* CLOCK_MONOTONIC: an agent was there */
};

/* The ring's records, for agents of another layout: they read what is left in it. */
struct mesh_formats {
	struct mesh_event event;
	struct mesh_close_event close;
	struct mesh_decision decision;
};

#pragma clang diagnostic pop

_Static_assert(sizeof(struct mesh_owner) == 32, "mesh_owner");
_Static_assert(sizeof(struct mesh_event) == 128, "mesh_event");
_Static_assert(sizeof(struct mesh_close_event) == 208, "mesh_close_event");
_Static_assert(sizeof(struct mesh_decision) == 64, "mesh_decision");
_Static_assert(sizeof(struct mesh_frontend) == 20, "mesh_frontend");
#ifndef MESH_OTHER_LAYOUT
_Static_assert(sizeof(struct mesh_table) == 48, "mesh_table");
_Static_assert(sizeof(struct mesh_backend) == 48, "mesh_backend");
_Static_assert(sizeof(struct mesh_load) == 32, "mesh_load");
_Static_assert(sizeof(struct mesh_workload) == 40, "mesh_workload");
_Static_assert(sizeof(struct mesh_policy_set) == 176, "mesh_policy_set");
_Static_assert(sizeof(struct mesh_lost_key) == 40, "mesh_lost_key");
_Static_assert(sizeof(struct mesh_lost) == 88, "mesh_lost");
_Static_assert(sizeof(struct mesh_account) == 8 * (1 + 3 + 3 + 1 + 3 + 5 + 5 + 5 + 3 + 8 + 1 + 3 + 1 + 4), "mesh_account");
#endif

#endif
