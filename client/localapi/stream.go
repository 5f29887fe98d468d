package localapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/platform/ipc"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
	"github.com/postern-zt/postern/proto/local/v1/localv1connect"
)

const (
	streamPath = "/stream"
	protocol   = "postern-stream"
	// receiptHeader carries the receipt of a denial, codeHeader the code of any refusal.
	receiptHeader = "Postern-Receipt"
	codeHeader    = "Postern-Code"
	// openTimeout bounds the wait for the answer to an open.
	openTimeout = 40 * time.Second
)

// stream opens an app and hands the connection over.
func (s *Server) stream(w http.ResponseWriter, r *http.Request) {
	if _, err := s.admit(r.Context(), Use); err != nil {
		s.refuse(w, err)
		return
	}
	port, err := strconv.ParseUint(r.URL.Query().Get("port"), 10, 16)
	if err != nil || r.Header.Get("Upgrade") != protocol {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	f, err := s.cfg.Backend.OpenTCP(r.Context(), r.URL.Query().Get("app"), uint16(port))
	if err != nil {
		s.refuse(w, s.wire(err))
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = f.Close()
		return
	}
	if buffered.Reader.Buffered() > 0 { // bytes before the answer break the protocol
		_ = f.Close()
		conn.Close()
		return
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+protocol+"\r\n\r\n"); err != nil {
		_ = f.Close()
		conn.Close()
		return
	}
	if c, ok := conn.(*ipc.Conn); ok {
		conn = c.Conn // which can close one direction
	}
	f.Splice(conn)
}

// refuse writes a refusal with its code and receipt.
func (s *Server) refuse(w http.ResponseWriter, err error) {
	var ce *connect.Error
	text := "refused"
	if errors.As(err, &ce) {
		text = ce.Message()
		w.Header().Set(codeHeader, ce.Code().String())
		for _, d := range ce.Details() {
			w.Header().Set(receiptHeader, base64.StdEncoding.EncodeToString(d.Bytes()))
		}
	}
	http.Error(w, text, http.StatusForbidden)
}

// Client is a command's end of the socket.
type Client struct {
	localv1connect.LocalServiceClient
	path      string
	transport *http.Transport
}

// NewClient returns a client of the socket at path; nothing is dialled yet.
func NewClient(path string) *Client {
	tr := ipc.Transport(path)
	return &Client{
		LocalServiceClient: localv1connect.NewLocalServiceClient(&http.Client{Transport: tr}, "http://postern.local"),
		path:               path, transport: tr,
	}
}

// Close gives the connections back.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Serves reports whether somebody serves the socket.
func Serves(ctx context.Context, path string) bool {
	conn, err := ipc.Dial(ctx, path)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// OpenTCP opens a raw stream to an app.
func (c *Client) OpenTCP(ctx context.Context, app string, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	conn, err := ipc.Dial(ctx, c.path)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	err = handshake(conn, app, port)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func handshake(conn net.Conn, app string, port uint16) error {
	query := url.Values{"app": {app}, "port": {strconv.Itoa(int(port))}}.Encode()
	_, err := fmt.Fprintf(conn, "GET %s?%s HTTP/1.1\r\nHost: postern.local\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", streamPath, query, protocol)
	if err != nil {
		return err
	}
	head, err := readHead(conn)
	if err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.MultiReader(bytes.NewReader(head), conn)), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	return refusal(resp)
}

// readHead reads byte by byte: what follows the empty line belongs to the app.
func readHead(r io.Reader) ([]byte, error) {
	var head []byte
	var b [1]byte
	for !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		if len(head) >= maxHeader {
			return nil, errors.New("the answer is too long")
		}
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, err
		}
		head = append(head, b[0])
	}
	return head, nil
}

// refusal reads a refusal back into the error that it was.
func refusal(resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // a cut sentence is still one
	var code connect.Code
	if code.UnmarshalText([]byte(resp.Header.Get(codeHeader))) != nil {
		code = connect.CodeUnknown
	}
	raw, err := base64.StdEncoding.DecodeString(resp.Header.Get(receiptHeader))
	var receipt controlv1.Receipt
	if err == nil && len(raw) > 0 && proto.Unmarshal(raw, &receipt) == nil {
		return &tunnels.DeniedError{Receipt: &receipt}
	}
	return connect.NewError(code, errors.New(strings.TrimSpace(string(body))))
}

// Denied returns the refusal inside an error of a call, with its receipt.
func Denied(err error) (*controlv1.Receipt, bool) {
	if d, ok := errors.AsType[*tunnels.DeniedError](err); ok {
		return d.Receipt, true
	}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return nil, false
	}
	for _, d := range ce.Details() {
		if m, err := d.Value(); err == nil {
			if r, ok := m.(*controlv1.Receipt); ok {
				return r, true
			}
		}
	}
	return nil, false
}
