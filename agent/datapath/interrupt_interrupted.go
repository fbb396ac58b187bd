//go:build sidelight_interrupted

package datapath

import (
	"os"
	"strconv"
	"syscall"
)

var steps int

// step kills this process at the step whose number SIDELIGHT_TEST_STEP has, beginning with 1.
func step() {
	steps++
	if last, err := strconv.Atoi(os.Getenv("SIDELIGHT_TEST_STEP")); err == nil && last == steps {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // it ends this process
		select {}
	}
}
