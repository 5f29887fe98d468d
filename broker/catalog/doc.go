// Package catalog holds what is published: sites, apps with their placements, the name
// suffixes of the organisation, and what connectors propose to publish. It guards the
// rules of these things: which names, ports and targets are allowed, that an edit of an
// outdated version is refused, that an app's index is not used again for 30 days, and that
// a connector's word alone never changes an app that exists.
//
// The admin API and enrolment write through Catalog; decisions, the catalog push and the
// assignments read its Snapshot. The store behind it keeps rows and announces each change
// under TopicSite, TopicApp, TopicSuffix or TopicProposal. The package opens no socket,
// resolves no name, and decides nothing about who may use an app.
//
// A Catalog is safe for concurrent use. A Snapshot is immutable and must not be changed by
// its readers.
package catalog
