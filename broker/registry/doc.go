// Package registry is the broker's list of machines with an identity key: devices,
// connectors and relays. A row is found by its id or by its key id, which is what a client
// certificate proves. The package guards their states: an active row may connect, a blocked
// one may not until it is unblocked, a removed one never again, and its key cannot be
// enrolled a second time.
//
//	(enrol) --> active <--> blocked
//	              |            |
//	              +-> removed <+
//
// Enrolment creates rows; the control API reads them at each connection and writes what it
// sees; the admin API changes states. The store announces changes of state under
// TopicDevice, TopicConnector and TopicRelay with the id as key; being seen is no change.
// The package holds no private key, checks no certificate and closes no connection: who
// listens to the topics does.
//
// A Registry has no state of its own and is safe for concurrent use.
package registry
