// Package netns builds small networks out of network namespaces, so that tests meet
// real kernels, real TUN devices and real programs. Only _test.go files of Linux
// import it; on other systems it is empty.
//
// A World is the namespaces of one test. Everything in it has a name of its own and
// goes away with the test, also when it fails. It never touches the machine's own
// network. A World is used by the goroutine of its test; Host methods may be called
// from any goroutine.
package netns
