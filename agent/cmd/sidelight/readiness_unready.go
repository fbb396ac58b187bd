//go:build sidelight_unready

package main

// failsReadiness is of a build that tests roll back from.
const failsReadiness = true
