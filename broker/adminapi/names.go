package adminapi

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/postern-zt/postern/broker/directory"
)

// shownNames is how many names an answer offers to those who mistyped one.
const shownNames = 5

func (s rules) noUser(ctx context.Context, name string, err error) error {
	if !errors.Is(err, directory.ErrNotFound) {
		return fmt.Errorf("user %q: %w", name, err)
	}
	users, listErr := s.cfg.Directory.Users(ctx, directory.Query{Limit: shownNames + 1})
	if listErr != nil {
		return notFound("no user %q", name)
	}
	var logins []string
	for _, u := range users {
		logins = append(logins, u.Login)
	}
	return notFound("no user %q; %s", name, thereAre(logins))
}

func (s rules) noGroup(ctx context.Context, name string, err error) error {
	if !errors.Is(err, directory.ErrNotFound) {
		return fmt.Errorf("group %q: %w", name, err)
	}
	groups, listErr := s.cfg.Directory.Groups(ctx)
	if listErr != nil {
		return notFound("no group %q", name)
	}
	var names []string
	for _, g := range groups {
		names = append(names, g.Name)
	}
	return notFound("no group %q; %s", name, thereAre(names))
}

// thereAre names the first few.
func thereAre(names []string) string {
	switch {
	case len(names) == 0:
		return "there are none yet"
	case len(names) > shownNames:
		return "there are: " + strings.Join(names[:shownNames], ", ") + " and more"
	default:
		return "there are: " + strings.Join(names, ", ")
	}
}
