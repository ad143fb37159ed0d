# What /etc/gitlab/gitlab.rb of the primary site (Linux package) has for an Outport in front of its container
# registry. Nothing here was run against a GitLab: every key is one that the pages named have; where a page
# may differ from your version, it says so. `sudo gitlab-ctl reconfigure` after a change.
#
#   [registry]  https://docs.gitlab.com/administration/packages/container_registry/
#   [geo]       https://docs.gitlab.com/administration/geo/replication/container_registry/
#   [nginx]     https://docs.gitlab.com/omnibus/settings/nginx/
#   [config]    https://gitlab.com/gitlab-org/container-registry/-/blob/master/docs/configuration.md
#   [template]  https://gitlab.com/gitlab-org/omnibus-gitlab/-/blob/master/files/gitlab-config-template/gitlab.rb.template

external_url 'https://gitlab.example.com'

# The address in every image name, in the UI and in CI_REGISTRY. It stays what it is; who answers there is a
# matter of DNS. [registry, "Configure container registry under its own domain"]
registry_external_url 'https://registry.example.com'

# Where GitLab's registry itself listens: an address that Outport's primary reaches, and clients do not. The
# default is 127.0.0.1:5000, which is enough for an Outport on the same machine. It is plain HTTP: a private
# network, or a firewall that lets in Outport and the Rails and Sidekiq nodes alone.
# [registry, "Change the registry's internal port" and "Configure GitLab and Registry to run on separate nodes"]
registry['registry_http_addr'] = '10.0.0.5:5000'

# Rails and Sidekiq (the UI, cleanup policies, deleting images) go on talking to the registry itself, not to
# Outport, which does not have GitLab's own API. This is the default; say it where they are on other nodes.
# [registry, "Configure GitLab"]
gitlab_rails['registry_api_url'] = 'http://10.0.0.5:5000'

# The bundled NGINX goes on serving the registry under registry_external_url. Leave it until the switch is long
# over: the way back is DNS alone. With the Let's Encrypt integration the registry's name is one of those on
# GitLab's certificate, and cannot be validated here any more once DNS leads elsewhere: give the registry a
# certificate of its own first. Before GitLab 19.2 these keys are registry_nginx['..']. [nginx, registry]
registry['nginx']['ssl_certificate'] = '/etc/gitlab/ssl/registry.example.com.crt'
registry['nginx']['ssl_certificate_key'] = '/etc/gitlab/ssl/registry.example.com.key'
# When nobody needs it any more:
# registry['nginx']['enable'] = false # [template]

# Tokens. All of these are the defaults; Outport's [auth.token] says the same three things.
# [registry, "Configure GitLab and Registry to run on separate nodes"]
registry['token_realm'] = 'https://gitlab.example.com' # realm: this and /jwt/auth
# service: container_registry, always                  # [registry, "Enable the container registry"]
gitlab_rails['registry_issuer'] = 'omnibus-gitlab-issuer'
# What tokens are signed with, and the certificate of that key: made by the package, kept in
# /etc/gitlab/gitlab-secrets.json. Name your own only if you have them already; line breaks as \n.
# registry['internal_key'] = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpQIBAA\n"
# registry['internal_certificate'] = "-----BEGIN CERTIFICATE-----\n..."
# The package writes the certificate where registry['rootcertbundle'] says, which is
# /var/opt/gitlab/registry/gitlab-registry.crt (`auth.token.rootcertbundle` in
# /var/opt/gitlab/registry/config.yml is the last word). Copy it to Outport's primary, and again if it is ever
# replaced: it is `certificates` of [auth.token] there. The key never leaves GitLab.

# Notifications: a list, each endpoint with a queue of its own. [registry, "Configure container registry
# notifications"; config, "notifications"]
registry['notifications'] = [
  {
    'name' => 'outport',
    'url' => 'http://10.0.0.6:9000/v1/notifications', # admin.listen of Outport's primary
    # Outport answers when it has asked the registry and has written down what it heard.
    'timeout' => '10s',
    # An event that fails as often is dropped for good, and with the package's default, 5, that takes less than
    # half a minute: a restart of Outport is longer. It walks the registry after each start, so nothing is lost
    # in the end, but it is later.
    'maxretries' => 25,
    'backoff' => '1s',
    'headers' => {
      # The content of secret_file at Outport. [geo] has a command that makes one.
      'Authorization' => ['Bearer <replace_with_a_secret_token>']
    },
    # Pulls change nothing, and what a layer belongs to is in its manifest. Registries before v4.32 ignore
    # `ignore` where no `ignoredmediatypes` stands beside it. [config]
    'ignoredmediatypes' => ['application/octet-stream'],
    'ignore' => { 'actions' => ['pull'] }
  },
  # Geo's own replication keeps its endpoint, where you have it. [geo]
  # {
  #   'name' => 'geo_event',
  #   'url' => 'https://gitlab.example.com/api/v4/container_registry_event/events',
  #   'timeout' => '500ms',
  #   'maxretries' => 5,
  #   'backoff' => '1s',
  #   'headers' => { 'Authorization' => ['<another_secret_token>'] }
  # }
]
# The secret of GitLab's own endpoint, where it is not named geo_event or the registry is on another node.
# [registry, geo; some versions of geo say registry['notification_secret'], which the package does not have:
# https://gitlab.com/gitlab-org/gitlab/-/merge_requests/249943]
# gitlab_rails['registry_notification_secret'] = '<another_secret_token>'

# With object storage the registry sends who pulls a blob to the bucket. Outport follows only to hosts in
# gateway.redirect_hosts; or let the registry serve the bytes. [registry, "Disable redirect for storage driver"]
# registry['storage'] = {
#   's3' => { 'bucket' => 'your-s3-bucket', 'region' => 'your-s3-region' },
#   'redirect' => { 'disable' => true }
# }

# ---------------------------------------------------------------------------------------------------------
# A secondary site of Geo needs nothing for Outport. Where it has a registry of its own that Geo replicates
# into, for disaster recovery, that one goes on as before, under its own registry_external_url, and must be led to GitLab's registry by an address
# that will not become Outport's when DNS changes (an /etc/hosts entry for the name of the bundled NGINX's
# certificate, or another name on that certificate). [geo, "Configure secondary site"]
#
# gitlab_rails['geo_registry_replication_enabled'] = true
# gitlab_rails['geo_registry_replication_primary_api_url'] = 'https://primary.example.com:5050/'
