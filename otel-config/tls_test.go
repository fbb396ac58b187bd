package otelconfig_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/collector/otlptest"
)

// certificate makes one for an address, and returns its file and that of its key.
func certificate(t *testing.T, address string) (certFile, keyFile string) {
	t.Helper()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP(host)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// TestAgentToGatewayWithTLS has both ends as their comments offer it.
func TestAgentToGatewayWithTLS(t *testing.T) {
	t.Parallel()
	loki, tempo := otlptest.Start(t, "http"), otlptest.Start(t, "grpc")
	address := otlptest.FreeAddress(t)
	certFile, keyFile := certificate(t, address)
	g := startGateway(t, "grafana.yaml", map[string]string{
		"GATEWAY_LISTEN": address, "PROMETHEUS_REMOTE_WRITE": "http://" + otlptest.FreeAddress(t) + "/api/v1/write",
		"LOKI_OTLP": "http://" + loki.Address + "/v1/logs", "TEMPO_OTLP": tempo.Address,
	}, "--config", "yaml:receivers::otlp::protocols::grpc::tls: {cert_file: "+certFile+", key_file: "+keyFile+"}")
	text, err := os.ReadFile("agent-to-gateway.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const offers = "# ca_file: /etc/sidelight/ca.pem"
	if !strings.Contains(string(text), offers) {
		t.Fatalf("agent-to-gateway.yaml does not offer %q", offers)
	}
	example := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(example, []byte(strings.Replace(string(text), offers, "ca_file: "+certFile, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	replay(t, example, map[string]string{"SIDELIGHT_GATEWAY": "https://" + address})
	want := len(accessLog(t))
	eventually(t, "records", 60*time.Second, func() bool { return loki.Logs.LogRecordCount() >= want && tempo.Traces.SpanCount() >= want })
	checkRecords(t, logRecords(t, loki.Logs.AllLogs()), spans(t, tempo.Traces.AllTraces()))
	if err := g.stop(); err != nil {
		t.Fatalf("%v: %s", err, g.said())
	}
}
