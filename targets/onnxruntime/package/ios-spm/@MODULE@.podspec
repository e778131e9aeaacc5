Pod::Spec.new do |s|
  s.name = "@MODULE@"
  s.version = "@VERSION@"
  s.summary = "@TARGET@ model with its preprocessing, labels and self-test"
  s.homepage = "https://example.invalid/@NAME@"
  s.license = { :type => "@LICENSE_ID@", :file => "LICENSE" }
  s.author = "@NAME@"
  s.source = { :path => "." }
  s.ios.deployment_target = "@IOS@.0"
  s.swift_version = "5.9"
  s.source_files = "Sources/**/*.{swift,c,h}"
  s.public_header_files = "Sources/@MODULE@Core/include/*.h"
  s.resource_bundles = {
    "@MODULE@_@MODULE@" => ["Sources/@MODULE@/assets", "Sources/@MODULE@/PrivacyInfo.xcprivacy"]
  }
  s.dependency "@RUNTIME_POD@", "~> @POD_VERSION@"
end
