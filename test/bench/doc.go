// Package bench measures the product against wireguard-go and against plain TCP, in network
// namespaces and with the real programs; `make bench` runs it, nothing else does.
//
//	laptop-tls ---+
//	              relay (router, broker) --- connector, app
//	laptop-quic --+
//
// Everything that is compared runs in the same hold, interleaved round by round, because
// machines drift. Both laptops are clients of one broker and one connector; in front of
// laptop-tls UDP to the broker is dropped, so that it has the TLS carrier, while the other
// has what the product prefers, QUIC. A row counts only if the client's own status names
// that carrier and the kernel's counters at the relay agree.
//
// The setting is @wire: segmentation offload is off on every cable, so that packets cross
// it in the size of a wire. Congestion control is cubic on both ends of every TCP
// connection, by socket and by route, and is read back.
//
// While others use the machine, figures sink and ratios blur: each sample says how much of
// the machine others took, and is taken again when that was much.
//
// Rows without a carrier in their name (open/warm/p50, cpu/client) are those of the TLS
// carrier with the tunnel interface; "reference" is wireguard-go, and a direct connection
// for the rows of open. A missed gate fails the run, a missed target is printed.
//
//	POSTERN_BENCH_ROUNDS=1     a quick look instead of three rounds
//	POSTERN_BENCH_PROFILE=DIR  perf records every program in the first round
//	POSTERN_BENCH_OPENS=1000   new connections only, in blocks of 1000, printed and not kept
//	POSTERN_BENCH_PROXY=1      also a client without tunnel interface, for comparison
//	POSTERN_BENCH_BIN=DIR      programs that were built before, to compare versions
//	POSTERN_BENCH_PLAIN=1      leave segmentation offload on
//
// All files but this one are tests; nothing imports the package.
package bench
