// Package userspace measures the user-space side by replay: records as the kernel writes them into its ring, through the real decoder,
// tracker, enricher's facts, pipeline, edge table, access log and mesh receiver. It needs no privileges.
//
// # What is played
//
// The bytes of struct mesh_event and mesh_close_event, of 5,000 connections with 2,000 open at a time, between 10 workloads that all talk to
// each other (200 edges), half of them containers; one connect of 51 is refused. Both ends of a connection are on this machine, so each is seen twice:
// all figures are of one end, from its first event to its last, 2.5 events on average. The stream goes on for ever: what is open at the end of
// a pass is closed in the next, and each pass is of new sockets, later. Its records are handed on in batches of 1,024, as the reader does where the ring is
// not empty sooner. Connections are 50 us apart by their own clock, so exemplars are renewed as on a node with 20,000 connections a second.
//
// # What is in a figure
//
//   - edges: decode, tracker, identity, edge table.
//   - json: the same, the queue, and a line of JSON to nowhere.
//   - logs: the same as edges, the queue, the mesh receiver with a consumer that does what an exporter does first: OTLP protobuf bytes.
//   - spans: the same as logs, and the span of each end in OTLP bytes.
//
// Not in it: reading the ring (mmap, a look at epoll per drain), /proc and cgroups of a process that is new, the exporter's queue on disk, compression and
// sending, the report of metrics. Those are in the live figures.
//
// # How
//
// CPU time is that of the process by getrusage, so the garbage collector's work is in it, while GOMAXPROCS is 1: on two threads of one core,
// outputs slow each other down. Before and after each sample runs fixed work, the gauge, half of it random access to 512 KiB. A sample is scaled by the
// gauge's best time of the measurement over its time beside the sample: microseconds of the machine as it was when nobody disturbed it. The order
// of what is sampled is shuffled anew in each round. The median counts, as in all sampled figures. Where others run all the time
// on the sibling of the core, the gauge's best is slow too, and so are the figures: by up to a half.
//
// Allocations and bytes are those of the whole process over all rounds, by runtime.MemStats, divided by the number of records and rounded to hundredths. Figures
// of json, logs and spans are what they add to the output before. They are deterministic but for what the runtime allocates by itself.
//
// Memory is HeapAlloc after two collections, with and without the open ends. A table has just grown when it is least full, and is twice as
// large a moment after it was fullest: the figure depends on the number, so it is of 100,000, which is an unlucky one (92 bytes; 43 to 85 for the table
// alone).
//
// growth.*: the same cost with so many other ends open, and with so many edges. Of an edge: its sums, four histograms, and its exemplars.
package userspace
