// Command check-operator-objects reads objects of the Prometheus Operator, as YAML documents, from standard input, and fails if one
// has a field that the operator's own types do not have, or a value of another type.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	strict "sigs.k8s.io/yaml"
)

func main() {
	status := 0
	reader := yaml.NewYAMLReader(bufio.NewReader(os.Stdin))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = check(document)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	os.Exit(status)
}

// check decodes one document strictly and prints its kind and name.
func check(document []byte) error {
	var header struct{ Kind string }
	if err := strict.Unmarshal(document, &header); err != nil {
		return err
	}
	var object interface{ GetName() string }
	switch header.Kind {
	case monitoring.ServiceMonitorsKind:
		object = new(monitoring.ServiceMonitor)
	case monitoring.PrometheusRuleKind:
		object = new(monitoring.PrometheusRule)
	default:
		return fmt.Errorf("%q is not a kind of the Prometheus Operator that is known here", header.Kind)
	}
	if err := strict.UnmarshalStrict(document, object); err != nil {
		return fmt.Errorf("%s: %w", header.Kind, err)
	}
	fmt.Println(header.Kind, object.GetName())
	return nil
}
