//go:build linux

package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of CPU times in /proc: USER_HZ is 100 on every Linux system.
const tick = 10 * time.Millisecond

// cpuTime is the user and system time of a process so far.
func cpuTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in brackets may hold spaces; utime and stime are the 14th and 15th field, the
	// state after the name is the third.
	_, rest, ok := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, fmt.Errorf("process %d: unknown layout of stat", pid)
	}
	user, uerr := strconv.ParseInt(fields[11], 10, 64)
	system, serr := strconv.ParseInt(fields[12], 10, 64)
	if uerr != nil || serr != nil {
		return 0, fmt.Errorf("process %d: no times in stat", pid)
	}
	return time.Duration(user+system) * tick, nil
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
