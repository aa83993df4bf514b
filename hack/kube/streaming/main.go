// cri-streaming serves exec, attach and port-forward for the box's container runtime.
//
// The kubelet expects these streams over SPDY or WebSockets, for which it has a Go library and Python has none. This
// program is that library between two unix sockets: at -control the runtime asks it for URLs, at -runtime it asks the
// runtime to run commands (the descriptors of their streams travel along) and where a pod's network is.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubelet/pkg/cri/streaming"
	utilexec "k8s.io/utils/exec"
)

// drainTime bounds the wait for output after a command's end: a child it left behind may hold the streams open.
const drainTime = 2 * time.Second

func main() {
	control := flag.String("control", "", "unix socket to serve URLs at")
	runtimeSocket := flag.String("runtime", "", "unix socket of the container runtime")
	flag.Parse()
	if err := serve(*control, *runtimeSocket); err != nil {
		log.Fatalf("cri-streaming: %v", err)
	}
}

func serve(control, runtimeSocket string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := listener.Addr().String()
	// The library listens by itself, at an address it must know beforehand for its URLs.
	if err := listener.Close(); err != nil {
		return err
	}
	config := streaming.DefaultConfig
	config.Addr = address
	server, err := streaming.NewServer(config, &box{socket: runtimeSocket})
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- server.Start(true) }()
	go func() { failed <- serveURLs(control, server) }()
	return <-failed
}

// question is what the runtime asks at the control socket: one JSON line, one answer.
type question struct {
	Kind    string          `json:"kind"`
	Request json.RawMessage `json:"request"`
}

type answer struct {
	URL   string `json:"url,omitempty"`
	Error string `json:"error,omitempty"`
}

func serveURLs(path string, server streaming.Server) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			url, err := urlFor(connection, server)
			reply := answer{URL: url}
			if err != nil {
				reply.Error = err.Error()
			}
			_ = json.NewEncoder(connection).Encode(reply)
		}()
	}
}

func urlFor(connection net.Conn, server streaming.Server) (string, error) {
	var asked question
	if err := json.NewDecoder(connection).Decode(&asked); err != nil {
		return "", err
	}
	switch asked.Kind {
	case "exec":
		request := &runtimeapi.ExecRequest{}
		return ask(asked.Request, request, func() (*runtimeapi.ExecResponse, error) { return server.GetExec(request) })
	case "attach":
		request := &runtimeapi.AttachRequest{}
		return ask(asked.Request, request, func() (*runtimeapi.AttachResponse, error) { return server.GetAttach(request) })
	case "portforward":
		request := &runtimeapi.PortForwardRequest{}
		return ask(asked.Request, request, func() (*runtimeapi.PortForwardResponse, error) { return server.GetPortForward(request) })
	}
	return "", fmt.Errorf("unknown kind %q", asked.Kind)
}

func ask[T interface{ GetUrl() string }](body json.RawMessage, request any, get func() (T, error)) (string, error) {
	if err := json.Unmarshal(body, request); err != nil {
		return "", err
	}
	response, err := get()
	if err != nil {
		return "", err
	}
	return response.GetUrl(), nil
}

// box is the container runtime as the streaming library wants it.
type box struct{ socket string }

// wish is what we ask the runtime: one JSON line, with up to three descriptors.
type wish struct {
	Kind      string   `json:"kind"`
	Container string   `json:"container,omitempty"`
	Sandbox   string   `json:"sandbox,omitempty"`
	Cmd       []string `json:"cmd,omitempty"`
	TTY       bool     `json:"tty"`
}

// outcome is the runtime's answer; a command's comes when it has ended.
type outcome struct {
	ExitCode int    `json:"exitCode"`
	Error    string `json:"error"`
	Network  string `json:"network"`
}

func (o outcome) err() error {
	if o.Error != "" {
		return errors.New(o.Error)
	}
	if o.ExitCode != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", o.ExitCode), Code: o.ExitCode}
	}
	return nil
}

// Exec runs a command in a container.
func (b *box) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	asked := wish{Kind: "exec", Container: id, Cmd: cmd, TTY: tty}
	if tty {
		return b.onTerminal(ctx, asked, in, out, resize)
	}
	return b.onPipes(ctx, asked, in, out, errOut, nil)
}

// Attach joins the streams of a container's own process.
func (b *box) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return b.onPipes(ctx, wish{Kind: "attach", Container: id, TTY: tty}, in, out, errOut, resize)
}

// PortForward carries one connection to a port on the pod's loopback.
func (b *box) PortForward(ctx context.Context, sandbox string, port int32, stream io.ReadWriteCloser) error {
	connection, err := b.ask(ctx, wish{Kind: "portforward", Sandbox: sandbox})
	if err != nil {
		return err
	}
	defer connection.Close()
	var said outcome
	if err := json.NewDecoder(connection).Decode(&said); err != nil {
		return err
	}
	if err := said.err(); err != nil {
		return err
	}
	target, err := dialIn(said.Network, port)
	if err != nil {
		return err
	}
	defer target.Close()
	return splice(target, stream)
}

// ask opens a connection to the runtime and sends the question with descriptors.
func (b *box) ask(ctx context.Context, asked wish, files ...*os.File) (*net.UnixConn, error) {
	dialer := net.Dialer{Timeout: 10 * time.Second}
	opened, err := dialer.DialContext(ctx, "unix", b.socket)
	if err != nil {
		return nil, fmt.Errorf("the node's runtime does not answer: %w", err)
	}
	connection := opened.(*net.UnixConn)
	line, err := json.Marshal(asked)
	if err != nil {
		return nil, errors.Join(err, connection.Close())
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, file := range files {
			fds[i] = int(file.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := connection.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		return nil, errors.Join(err, connection.Close())
	}
	return connection, nil
}

// onPipes runs a wish whose three streams are pipes; resize, when given, goes to the runtime as JSON lines.
func (b *box) onPipes(ctx context.Context, asked wish, in io.Reader, out, errOut io.WriteCloser, resize <-chan remotecommand.TerminalSize) error {
	var theirs, ours [3]*os.File
	for i := range theirs {
		read, write, err := os.Pipe()
		if err != nil {
			return err
		}
		if i == 0 {
			theirs[i], ours[i] = read, write
		} else {
			theirs[i], ours[i] = write, read
		}
		defer read.Close()
		defer write.Close()
	}
	connection, err := b.ask(ctx, asked, theirs[:]...)
	if err != nil {
		return err
	}
	defer connection.Close()
	for _, file := range theirs {
		_ = file.Close()
	}
	go func() {
		if in != nil {
			_, _ = io.Copy(ours[0], in)
		}
		_ = ours[0].Close()
	}()
	var outputs sync.WaitGroup
	for i, target := range []io.Writer{out, errOut} {
		outputs.Add(1)
		go func() {
			defer outputs.Done()
			drain(target, ours[i+1])
		}()
	}
	if resize != nil { // a nil channel would hold the goroutine for ever
		go func() {
			for size := range resize {
				_ = json.NewEncoder(connection).Encode(map[string]uint16{"width": size.Width, "height": size.Height})
			}
		}()
	}
	return await(ctx, connection, bufio.NewReader(connection), &outputs)
}

// onTerminal runs a wish on a terminal of the container's; the runtime sends us its controlling end.
func (b *box) onTerminal(ctx context.Context, asked wish, in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) error {
	connection, err := b.ask(ctx, asked)
	if err != nil {
		return err
	}
	defer connection.Close()
	line, terminal, err := receiveTerminal(connection)
	if err != nil {
		return err
	}
	if terminal == nil {
		var said outcome
		if err := json.Unmarshal(line, &said); err != nil {
			return err
		}
		return said.err()
	}
	defer terminal.Close()
	var outputs sync.WaitGroup
	outputs.Add(1)
	go func() {
		defer outputs.Done()
		drain(out, terminal)
	}()
	if in != nil {
		go func() { _, _ = io.Copy(terminal, in) }()
	}
	go func() {
		for size := range resize {
			_ = unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
		}
	}()
	return await(ctx, connection, bufio.NewReader(connection), &outputs)
}

func receiveTerminal(connection *net.UnixConn) ([]byte, *os.File, error) {
	line, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	n, rightsN, _, _, err := connection.ReadMsgUnix(line, rights)
	if err != nil {
		return nil, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rightsN])
	if err != nil || len(messages) == 0 {
		return line[:n], nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return line[:n], nil, err
	}
	return line[:n], os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// await returns how the command ended, once its output is out too.
func await(ctx context.Context, connection net.Conn, answers *bufio.Reader, outputs *sync.WaitGroup) error {
	stop := context.AfterFunc(ctx, func() { _ = connection.Close() })
	defer stop()
	var said outcome
	if err := json.NewDecoder(answers).Decode(&said); err != nil {
		return fmt.Errorf("the node's runtime ended the stream: %w", err)
	}
	drained := make(chan struct{})
	go func() {
		outputs.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(drainTime):
	}
	return said.err()
}

// drain reads to the end even where nobody listens, so that the writer never blocks.
func drain(target io.Writer, source io.Reader) {
	if target == nil {
		target = io.Discard
	}
	if _, err := io.Copy(target, source); err != nil {
		_, _ = io.Copy(io.Discard, source)
	}
}

// dialIn connects to a loopback port inside the network namespace at path ("" for our own).
func dialIn(path string, port int32) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 10 * time.Second}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	if path == "" {
		return dialer.Dial("tcp", address)
	}
	type result struct {
		connection net.Conn
		err        error
	}
	done := make(chan result, 1)
	go func() {
		// A socket belongs to the namespace its thread was in; a thread that cannot go back must not be reused,
		// which the Go runtime guarantees when a locked goroutine ends.
		runtime.LockOSThread()
		network, err := os.Open(path)
		if err == nil {
			defer network.Close()
			err = unix.Setns(int(network.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			done <- result{nil, fmt.Errorf("cannot enter the pod's network: %w", err)}
			return
		}
		connection, err := dialer.Dial("tcp", address)
		done <- result{connection, err}
	}()
	got := <-done
	return got.connection, got.err
}

// splice copies both ways until both directions have ended or the pod's side has.
func splice(target net.Conn, stream io.ReadWriteCloser) error {
	fromPod := make(chan error, 1)
	go func() {
		_, err := io.Copy(stream, target)
		fromPod <- err
	}()
	go func() {
		_, _ = io.Copy(target, stream)
		if half, ok := target.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
	}()
	return <-fromPod
}
