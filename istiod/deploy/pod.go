package deploy

import (
	"maps"
	"path"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

const (
	containerName   = "istio-proxy" // what kubectl exec, dashboards and istioctl look for
	volumeToken     = "istio-token"
	volumeRootCert  = "istiod-ca-cert"
	tokenLifetime   = 43200 // seconds
	user            = 1337
	labelInject     = "sidecar.istio.io/inject"
	terminationTime = 30 // seconds; running requests end in it
)

func (w waypoint) deployment() *appsv1.Deployment {
	one := intstr.FromInt32(1)
	none := intstr.FromInt32(0)
	return &appsv1.Deployment{
		APIVersion: "apps/v1",
		Kind:       "Deployment",
		ObjectMeta: w.meta(w.name),
		Spec: appsv1.DeploymentSpec{
			// No replicas: they are one until somebody scales the waypoint, and
			// then theirs to say.
			Selector: &metav1.LabelSelector{MatchLabels: w.selector()},
			// A new pod is ready before an old one goes: no request without waypoint.
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &one, MaxUnavailable: &none},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: w.podLabels(), Annotations: w.podAnnotations()},
				Spec:       w.podSpec(),
			},
		},
	}
}

func (w waypoint) podLabels() map[string]string {
	out := maps.Clone(w.labels)
	out[labelInject] = "false"
	out[mesh.LabelDataplaneMode] = mesh.DataplaneModeNone
	out[mesh.LabelCanonicalName] = w.name
	out[mesh.LabelCanonicalRevision] = "latest"
	return out
}

func (w waypoint) podAnnotations() map[string]string {
	out := maps.Clone(w.annotations)
	out["prometheus.io/scrape"] = "true"
	out["prometheus.io/port"] = strconv.Itoa(mesh.PortMetrics)
	out["prometheus.io/path"] = "/stats/prometheus"
	return out
}

func (w waypoint) podSpec() corev1.PodSpec {
	grace := int64(terminationTime)
	return corev1.PodSpec{
		ServiceAccountName:            w.account,
		TerminationGracePeriodSeconds: &grace,
		Containers: []corev1.Container{{
			Name:            containerName,
			Image:           w.options.Image,
			ImagePullPolicy: corev1.PullIfNotPresent,
			Env:             w.env(),
			Ports: []corev1.ContainerPort{
				{Name: "hbone", ContainerPort: mesh.PortHBONE, Protocol: corev1.ProtocolTCP},
				{Name: "metrics", ContainerPort: mesh.PortMetrics, Protocol: corev1.ProtocolTCP},
				{Name: "status-port", ContainerPort: mesh.PortReadiness, Protocol: corev1.ProtocolTCP},
			},
			ReadinessProbe: readiness(),
			Resources: corev1.ResourceRequirements{
				Requests: resources("100m", "128Mi"),
				Limits:   resources("2", "1Gi"),
			},
			SecurityContext: restricted(),
			VolumeMounts: []corev1.VolumeMount{
				{Name: volumeToken, MountPath: path.Dir(mesh.TokenPath), ReadOnly: true},
				{Name: volumeRootCert, MountPath: path.Dir(mesh.RootCertPath), ReadOnly: true},
			},
		}},
		Volumes: volumes(),
	}
}

func (w waypoint) env() []corev1.EnvVar {
	istiod := "https://" + mesh.ServiceIstiod + "." + w.options.SystemNamespace + ".svc:" + strconv.Itoa(mesh.PortXDS)
	out := []corev1.EnvVar{
		fieldEnv("POD_NAME", "metadata.name"),
		fieldEnv("POD_NAMESPACE", "metadata.namespace"),
		fieldEnv("INSTANCE_IP", "status.podIP"),
		fieldEnv("SERVICE_ACCOUNT", "spec.serviceAccountName"),
		fieldEnv("NODE_NAME", "spec.nodeName"),
		{Name: "CA_ADDRESS", Value: istiod},
		{Name: "XDS_ADDRESS", Value: istiod},
		{Name: "CA_ROOT_CA", Value: mesh.RootCertPath},
		{Name: "XDS_ROOT_CA", Value: mesh.RootCertPath},
	}
	for _, optional := range []corev1.EnvVar{
		{Name: "CLUSTER_ID", Value: w.options.ClusterID},
		{Name: "TRUST_DOMAIN", Value: w.options.TrustDomain},
		{Name: "NETWORK", Value: w.options.Network},
	} {
		if optional.Value != "" {
			out = append(out, optional)
		}
	}
	return out
}

func fieldEnv(name, field string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: field}}}
}

// readiness is asked often, and there is no startup probe: a new pod serves
// within seconds, one that cannot serve is left alone within seconds, and one
// that waits for istiod is not restarted for it.
func readiness() *corev1.Probe {
	return &corev1.Probe{
		HTTPGet: &corev1.HTTPGetAction{
			Path: "/healthz/ready", Port: intstr.FromInt32(mesh.PortReadiness), Scheme: corev1.URISchemeHTTP,
		},
		PeriodSeconds: 1, FailureThreshold: 2, TimeoutSeconds: 1, SuccessThreshold: 1,
	}
}

func resources(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse(cpu),
		corev1.ResourceMemory: resource.MustParse(memory),
	}
}

// restricted is the least that a process without privileged ports needs.
func restricted() *corev1.SecurityContext {
	yes, no, id := true, false, int64(user)
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: &no,
		Privileged:               &no,
		ReadOnlyRootFilesystem:   &yes,
		RunAsNonRoot:             &yes,
		RunAsUser:                &id,
		RunAsGroup:               &id,
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

func volumes() []corev1.Volume {
	lifetime := int64(tokenLifetime)
	return []corev1.Volume{
		{Name: volumeToken, Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Audience: mesh.TokenAudience, ExpirationSeconds: &lifetime, Path: path.Base(mesh.TokenPath),
			}}},
		}},
		{Name: volumeRootCert, ConfigMap: &corev1.ConfigMapVolumeSource{Name: mesh.RootCertConfig}},
	}
}
