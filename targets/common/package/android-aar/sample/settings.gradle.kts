pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositories {
        maven { url = uri("../maven") }
        google()
        mavenCentral()
    }
}

rootProject.name = "@SHORT@-sample"
include(":app")
