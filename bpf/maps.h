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
	MESH_OTHER(__u64 other;)
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

/*
 * With what the kernel puts before it (struct bpf_local_storage_elem) 256 bytes, which is what it allocates: 8 more would take 512, as they do in the other
 * layout.
 */
#ifndef MESH_OTHER_LAYOUT
_Static_assert(sizeof(struct mesh_connection) <= 184, "mesh_connection");
#endif

/* What the mesh decided of a socket's connection, and what it holds for it. */
struct mesh_decided {
	MESH_OTHER(__u64 other;)
	struct mesh_decision decision;
	__u32 holds; /* enum mesh_holds: what is to be given back */
	__u32 limits[2]; /* the indices: of the service, of the workload */
	__u32 source; /* class of who connects */
};

enum mesh_holds {
	MESH_HOLDS_BACKEND = 1, /* one of its `open` */
	MESH_HOLDS_OPEN = 2, /* one of `open` of both limits */
	MESH_HOLDS_CONNECTING = 4, /* one of `connecting` of both limits */
	MESH_HOLDS_IN_FLIGHT = 8, /* its SYN left, so its TCP_CLOSE will be seen */
};

/*
 * The state where there is a mesh: `connections` has values of this size then, which user space sets at load. It takes an allocation of 512 bytes; a
 * storage of its own for the decision would cost a connection that has one some 200 ns more, and one that has none some 120 ns less.
 */
struct mesh_connection_in_mesh {
	struct mesh_connection connection;
	struct mesh_decided decided; /* valid with MESH_DECIDED in connection.event.flags */
};

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

/* Purpose: the same of programs before, whose maps had another layout. Writer: user space. Deleter: nobody. Size: one struct. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mesh_account);
} account_before SEC(".maps");

/*
 * Purpose: its type says what the records of `events` are made of, to whoever finds it pinned. Writer, deleter: nobody, it holds nothing. Size: one, as there is no
 * smaller.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mesh_formats);
} formats SEC(".maps");

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

/* Purpose: what agents have read of `lost`, which only grows. Writer: user space. Deleter: nobody. Size: as `lost`. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct mesh_lost_key);
	__type(value, struct mesh_lost);
} lost_read SEC(".maps");

/* Purpose: the same of `lost_totals`. Writer: user space. Deleter: nobody. Size: as `lost_totals`. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MESH_ROLE_COUNT *MESH_REASON_COUNT);
	__type(key, __u32);
	__type(value, struct mesh_lost);
} lost_totals_read SEC(".maps");

/* Purpose: what one agent leaves the next. Writer: user space, mapped into its memory. Deleter: nobody. Size: one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mesh_ledger);
} ledger SEC(".maps");

/* Purpose: the same of programs: when an agent was there last. Writer: user space, mapped into its memory. Deleter: nobody. Size: one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mesh_watchdog);
} watchdog SEC(".maps");

/*
 * Purpose: peers to exchange trace ids with, by address. Writer, deleter: agent/datapath, at the start. Size: what a configuration may name (agent/config) and one more, which keeps IPv4 out of blocks of IPv6, and
 * the same for all, so that a change of them is no change of the layout; an entry takes memory when it is there.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 256);
	__type(key, struct mesh_trace_block);
	__type(value, __u32);
} trace_blocks SEC(".maps");

/*
 * The mesh: see abi.h for what the values mean and how they change. All of it has one entry while there is no mesh, and else the sizes that
 * the configuration gives; a mesh that does not fit is refused whole. Arrays that user space maps into its memory, so that a
 * change costs no system call and a reference changes by one store.
 */
#define MESH_ARRAY(name, type_)                    \
	struct {                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);  \
		__uint(map_flags, BPF_F_MMAPABLE); \
		__uint(max_entries, 1);            \
		__type(key, __u32);                \
		__type(value, type_);              \
	} name SEC(".maps")

#define MESH_HASH(name, key_, value_)                 \
	struct {                                      \
		__uint(type, BPF_MAP_TYPE_HASH);      \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__uint(max_entries, 1);               \
		__type(key, key_);                    \
		__type(value, value_);                \
	} name SEC(".maps")

/*
 * Purpose: who a process is: by the id of its cgroup, or of the nearest above that has an entry. Writer, deleter: agent/maps. Size: workloads with
 * a cgroup on this node.
 */
MESH_HASH(cgroups, __u64, __u32); /* index into `workloads` */

/* Purpose: who an address is. Writer, deleter: agent/maps. Size: addresses of workloads. */
struct mesh_address {
	__u8 addr[16];
};
MESH_HASH(addresses, struct mesh_address, __u32); /* index into `workloads` */

/* Purpose: everybody who has an identity or a policy. Writer: agent/maps. Deleter: nobody, an index is used again. Size: workloads. */
MESH_ARRAY(workloads, struct mesh_workload);

/* Purpose: what is dialled. Writer, deleter: agent/maps. Size: addresses of services times their ports. */
MESH_HASH(frontends, struct mesh_frontend, __u32); /* index into `pools` */

/* Purpose: the reference that flips from one table to the next. Writer: agent/maps. Size: as `frontends`, or fewer. */
MESH_ARRAY(pools, __u32); /* index into `tables`; 0: refuse, no endpoint */

/* Purpose: tables. Writer: agent/maps. Size: twice `pools`, so that all can be replaced at once. */
MESH_ARRAY(tables, struct mesh_table);

/* Purpose: the choices of all tables. Writer: agent/maps. Size: twice what all tables of the largest mesh have. */
MESH_ARRAY(slots, __u64);

/* Purpose: where connections go. Writer: agent/maps. Size: endpoints times ports, and those that still drain. */
MESH_ARRAY(backends, struct mesh_backend);

/* Purpose: counts of a backend, at the same index. Writer: mesh_connect4 and 6, mesh_sockops, mesh_release. Zeroed by agent/maps when an index is used anew. */
MESH_ARRAY(loads, struct mesh_load);

/* Purpose: the next turn of each pool that takes turns, at the index of the pool. Writer: mesh_connect4 and 6. Size: as `pools`. */
MESH_ARRAY(turns, __u64);

/* Purpose: bounds. Writer: agent/maps. Size: services and workloads with limits. */
MESH_ARRAY(limits, struct mesh_limit);

/*
 * What stands against a bound. The lock makes a look and a step one: n connections pass a limit of n, whoever races.
 */
struct mesh_limit_state {
	MESH_OTHER(__u64 other;)
	struct bpf_spin_lock lock;
	__u32 reserved;
	struct mesh_limit_counts counts;
	__u64 tokens_ns; /* of the bucket, in time: one token is 1 s / per_second */
	__u64 filled_ns; /* CLOCK_MONOTONIC, when that was so */
};

/* Purpose: that, at the index of the limit. Writer: mesh_connect4 and 6, mesh_sockops, mesh_release. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mesh_limit_state);
} limit_states SEC(".maps");

/* Purpose: who may connect. Writer: agent/maps; a set never changes, a workload gets another. Size: distinct sets of policies, twice. */
MESH_ARRAY(policy_sets, struct mesh_policy_set);

/* Purpose: rules by class of source. Writer, deleter: agent/maps. Size: sets times classes that they name. */
MESH_HASH(policy_sources, struct mesh_policy_source, struct mesh_rules);

/* Purpose: rules by address of the source. Writer, deleter: agent/maps. Size: sets times blocks that they name. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct mesh_policy_block);
	__type(value, struct mesh_rules);
} policy_blocks SEC(".maps");

/* Purpose: rules by port. Writer, deleter: agent/maps. Size: sets times ports that they name. */
MESH_HASH(policy_ports, struct mesh_policy_port, struct mesh_rules);

/* Purpose: counts of verdicts. Writer: mesh_connect4 and 6, mesh_lookup. Deleter: agent/maps, with the set. Size: rules, twice. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct mesh_verdict_key);
	__type(value, __u64);
} verdicts SEC(".maps");

/* Both ends of a SYN, as the server sees them. */
struct mesh_ticket {
	__u8 client_addr[16];
	__u8 server_addr[16];
	__u16 client_port; /* host byte order */
	__u16 server_port;
};

/* What is known of who sends it, and what was said of it. */
struct mesh_admission {
	__u32 source; /* class */
	__u32 destination; /* index into `workloads`; 0: not judged yet */
	__u32 policy_set;
	__u16 rule;
	__u16 dry_rule;
	__u8 verdict;
	__u8 dry_verdict;
	__u8 reserved[6];
	__u64 closed_ns; /* CLOCK_MONOTONIC: the connection ended, and the rest says nothing; 0: not so */
};

/*
 * Purpose: who sent a SYN, for the server's side on the same machine, where the client's cgroup says more than its address; then what the server's side said
 * of it, for the accepted socket. Writer: mesh_sockops, when the SYN of a connection to somebody with policies is about to leave, and
 * mesh_lookup. Deleter: mesh_sockops, when the socket is there; what leaves for another machine, or is not answered, ages, as does what
 * says that a connection ended. Size: handshakes with such
 * that are under way at a time.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct mesh_ticket);
	__type(value, struct mesh_admission);
} tickets SEC(".maps");

/* Where somebody listens. */
struct mesh_listen {
	__u64 netns; /* its cookie */
	__u8 addr[16]; /* ::ffff:0.0.0.0: any of IPv4; all zero: any of IPv6, and of IPv4 unless the socket is for IPv6 only */
	__u32 port; /* host byte order */
	__u32 reserved;
};

struct mesh_listener {
	__u32 workload; /* index into `workloads` of who listened last */
	__u32 refs; /* listeners; changed by atomics only */
};

/*
 * Purpose: who listens, for those that no address tells of. Writer: mesh_sockops, mesh_adopt_owners. Deleter: agent/datapath, entries without refs, by
 * look-up and deletion in one: an entry that was taken up meanwhile it puts back. Size: listeners of workloads, each of which has
 * MESH_LISTENERS_EACH at most, so that none can take the room of all.
 */
MESH_HASH(listeners, struct mesh_listen, struct mesh_listener);

#define MESH_LISTENERS_EACH 4096

/* Purpose: how many entries of `listeners` a workload has. Writer: mesh_sockops, mesh_adopt_owners; agent/datapath with each deletion. Size: as `workloads`. */
MESH_ARRAY(listens, __u32);

#endif
