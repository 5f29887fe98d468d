//go:build linux

package bench

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// processClock is CPUCLOCK_SCHED of linux/posix-timers.h: the scheduler's own count of the
// CPU time of a whole process, to the nanosecond. It includes interrupts that the process
// was charged with.
const processClock = 2

// cpuTime is the CPU time of a process so far.
func cpuTime(pid int) (time.Duration, error) {
	var at unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|processClock), &at); err != nil {
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	return time.Duration(at.Nano()), nil
}

// cpuTimes is cpuTime for each role.
func cpuTimes(pids map[string]int) (map[string]time.Duration, error) {
	times := make(map[string]time.Duration, len(pids))
	for role, pid := range pids {
		t, err := cpuTime(pid)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", role, err)
		}
		times[role] = t
	}
	return times, nil
}

// tick is the unit of CPU times in /proc/stat: USER_HZ is 100 on every Linux system.
const tick = 10 * time.Millisecond

// machineTime is the CPU time of everything on this machine so far, idling left out.
func machineTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(first) // cpu user nice system idle iowait irq softirq steal ...
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, errors.New("unknown layout of /proc/stat")
	}
	var total time.Duration
	for i, text := range fields[1:9] {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, err
		}
		if name := i + 1; name != 4 && name != 5 { // idle, iowait
			total += time.Duration(n) * tick
		}
	}
	return total, nil
}

// foreignTime is the CPU time so far of what does not belong to the bench. Kernel threads
// count as foreign too, so it is never quite still.
func foreignTime(own map[string]int) (time.Duration, error) {
	total, err := machineTime()
	if err != nil {
		return 0, err
	}
	for _, pid := range append(slices.Collect(maps.Values(own)), os.Getpid()) {
		t, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		total -= t
	}
	return total, nil
}

// resident is the memory of a process in MB.
func resident(pid int) (float64, error) {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return 0, fmt.Errorf("process %d: unknown layout of statm", pid)
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	return float64(pages) * float64(os.Getpagesize()) / 1e6, err
}

// machineLoad is the load average of the last minute: figures of a busy machine say little.
func machineLoad() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
